"""``TensorConversion``: tensors that a class of transformers stores otherwise than checkpoints do.

transformers renames, merges, splits or reshapes some tensors when it loads them: it has one tensor
for all experts of a layer, for example, where checkpoints have one for each. This is done here by
its own conversion mapping.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vlcore.errors import TensorError


@dataclass
class _Group:
    """Tensors that are converted together."""

    target: str
    converter: Any
    patterns: dict[str, str] = field(default_factory=dict)
    """The pattern that matched each key, in the order in which tensors are merged."""
    received: dict[str, Tensor] = field(default_factory=dict)

    @property
    def targets(self) -> set[str]:
        """The names of the results, of which ``target`` is the first."""
        first, *_ = patterns = self.converter.target_patterns
        found = re.search(re.escape(first).replace(r"\\1", "(.+?)"), self.target)
        if found is None:
            return {self.target}
        start, end = self.target[: found.start()], self.target[found.end() :]
        return {f"{start}{found.expand(pattern)}{end}" for pattern in patterns}


class TensorConversion:
    """The conversion of tensors by their names, which is the identity for most of them.

    Args:
        module: the module to fill, with or without weights.
        keys: the names of the available tensors.
    """

    def __init__(self, module: nn.Module, keys: Iterable[str]) -> None:
        self._module = module
        self._names: dict[str, str] = {}
        """The name in the module of each key that is only renamed."""
        self._groups: dict[str, _Group] = {}
        """The group of each key that is converted."""
        groups: dict[str, _Group] = {}
        for key, (target, pattern, converter) in _placed(module, keys):
            if pattern is None:
                self._names[key] = target
                continue
            if target not in groups:
                groups[target] = _Group(target, copy.deepcopy(converter))
            groups[target].patterns[key] = pattern
            self._groups[key] = groups[target]

    @property
    def targets(self) -> set[str]:
        """The names in the module of all tensors that result."""
        converted = {target for group in self._groups.values() for target in group.targets}
        return converted | set(self._names.values())

    def __contains__(self, key: str) -> bool:
        """Whether a tensor is renamed or converted."""
        return key in self._groups or self._names.get(key, key) != key

    def __call__(self, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """Add a tensor, and return what is complete with it, by its name in the module.

        Raises:
            TensorError: the tensors cannot be converted.
        """
        group = self._groups.get(key)
        if group is None:
            return {self._names.get(key, key): tensor}
        group.received[key] = tensor
        if len(group.received) < len(group.patterns):
            return {}
        for name, pattern in group.patterns.items():
            group.converter.add_tensor(group.target, name, pattern, group.received.pop(name))
        try:
            converted = group.converter.convert(
                group.target, model=self._module, config=getattr(self._module, "config", None)
            )
        except Exception as error:
            raise TensorError(
                f"{len(group.patterns)} tensor(s), {next(iter(group.patterns))} first, cannot be "
                f"converted to {group.target} of {type(self._module).__name__}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if isinstance(converted, tuple):  # the first releases of transformers 5 add errors
            converted, _ = converted
        return {
            name: value[0] if isinstance(value, list) else value
            for name, value in converted.items()
        }


def _placed(
    module: nn.Module, keys: Iterable[str]
) -> Iterator[tuple[str, tuple[str, str | None, Any]]]:
    """For each key its name in the module and, if it is converted, the pattern and the conversion.

    Tensors are merged in the order of the keys. Modules that are no class of transformers have the
    names of checkpoints.
    """
    if not hasattr(module, "base_model_prefix"):
        return
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(module)  # type: ignore[arg-type]
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    by_pattern = {pattern: step for step in converters for pattern in step.source_patterns}
    expected = module.state_dict()
    prefix = str(module.base_model_prefix)
    for key in sorted(keys, key=_natural_order):
        target, pattern = rename_source_key(key, renamings, converters, prefix, expected)
        if target not in expected and key in expected:  # it has the name of the module already
            target, pattern = key, None
        yield key, (target, pattern, None if pattern is None else by_pattern[pattern])


def _natural_order(key: str) -> list[tuple[bool, int, str]]:
    """Sort by the numbers in names, so that expert 10 comes after expert 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in key.split(".")]

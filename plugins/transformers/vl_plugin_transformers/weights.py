"""Where the tensors of a class of transformers are stored in a checkpoint."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from vlcore import Checkpoint, TensorError

_COMPUTED_SUFFIX = ".rotary_emb.inv_freq"
_MAX_NAMES_IN_MESSAGE = 20


class StoredTensors:
    """The tensors of a checkpoint under their names in a class, by transformers' own mapping.

    Most tensors are stored under older names than those of the class. Some are stored otherwise:
    the class has one tensor for all experts of a layer, for example.

    Args:
        checkpoint: the checkpoint.
        module: the class without weights, with all of its modules.
    """

    def __init__(self, checkpoint: Checkpoint, module: Any) -> None:
        self._checkpoint = checkpoint
        steps = get_model_conversion_mapping(module)
        self._renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        self._converters = [step for step in steps if isinstance(step, WeightConverter)]
        self._expected = dict(module.state_dict())

    @cached_property
    def keys(self) -> dict[str, str]:
        """The name in the class of each stored tensor, before tensors are merged or split."""
        return {
            name: rename_source_key(name, self._renamings, [], "model", self._expected)[0]
            for name in self._checkpoint.tensor_names
            if not name.endswith(_COMPUTED_SUFFIX)
        }

    def is_converted(self, key: str) -> bool:
        """Whether a tensor is merged with others or split on loading."""
        return rename_source_key(key, [], self._converters)[1] is not None

    def check(self, module: Any) -> None:
        """Check that the checkpoint holds the tensors of a module, without reading them.

        Raises:
            TensorError: tensors are missing or misshapen.
        """
        expected = module.state_dict()
        plan = _Plan(self, expected)
        found = {*plan.plain.values(), *(key for step in plan.steps for key in plan.targets(step))}
        self._check_missing(module, expected, found)
        infos = self._checkpoint.tensor_infos(plan.plain)
        for name, key in plan.plain.items():
            self._check_shape(key, infos[name].shape, expected[key].shape)

    def load(
        self,
        module: Any,
        device: torch.device,
        dtype: torch.dtype | None,
        *,
        progress: bool = False,
    ) -> None:
        """Fill a module, and prepare it for inference. No other tensors are read.

        Raises:
            TensorError: tensors are missing or misshapen.
        """
        self.check(module)
        expected = module.state_dict()
        plan = _Plan(self, expected)
        state: dict[str, Tensor] = {}
        for name, tensor in self._checkpoint.tensors(
            plan.names, device=device, dtype=dtype, progress=progress
        ):
            state.update(plan.add(name, tensor, module))
        for key, original in (module.all_tied_weights_keys or {}).items():
            if key in expected and original in state:
                state.setdefault(key, state[original])
        for key, value in expected.items():
            self._check_shape(key, state[key].shape, value.shape)
        module.load_state_dict({key: state[key] for key in expected}, assign=True)
        module.requires_grad_(False).eval()
        for part in module.modules():  # buffers that are computed and not stored
            for key, buffer in part.named_buffers(recurse=False):
                setattr(part, key, buffer.to(device))

    def place(self, name: str, expected: Mapping[str, Tensor]) -> tuple[str, str | None]:
        """Return the name of a stored tensor in the class, and the pattern of its conversion."""
        key, pattern = rename_source_key(
            name, self._renamings, self._converters, "model", self._expected
        )
        if key not in expected and name in expected:  # it has the name of the class already
            return name, None
        return key, pattern

    def converter(self, pattern: str) -> Any:
        """Return a new conversion of tensors that match a pattern."""
        return copy.deepcopy(
            next(step for step in self._converters if pattern in step.source_patterns)
        )

    def _check_missing(self, module: Any, expected: Mapping[str, Tensor], found: set[str]) -> None:
        tied = module.all_tied_weights_keys or {}
        missing = sorted(key for key in expected if key not in found and tied.get(key) not in found)
        if missing:
            more = len(missing) - _MAX_NAMES_IN_MESSAGE
            raise TensorError(
                f"{self._checkpoint.name} lacks {len(missing)} tensor(s) that config.json asks "
                f"for: {', '.join(missing[:_MAX_NAMES_IN_MESSAGE])}"
                f"{f' and {more} more' if more > 0 else ''}"
            )

    def _check_shape(self, key: str, actual: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if tuple(actual) != tuple(expected):
            raise TensorError(
                f"wrong shape in {self._checkpoint.name}: {key} is {list(actual)} where "
                f"config.json asks for {list(expected)}"
            )


class _Plan:
    """Which stored tensors fill the keys of a module, and how."""

    def __init__(self, stored: StoredTensors, expected: Mapping[str, Tensor]) -> None:
        self.plain: dict[str, str] = {}
        """The key of each stored tensor that is used unchanged."""
        self.steps: dict[str, Any] = {}
        """The conversion of each key, which may have further results."""
        self._parts: dict[str, tuple[str, str]] = {}
        for name in stored.keys:
            key, pattern = stored.place(name, expected)
            if key not in expected:
                continue
            if pattern is None:
                self.plain[name] = key
            else:
                self._parts[name] = key, pattern
                if key not in self.steps:
                    self.steps[key] = stored.converter(pattern)
        self._num_missing = Counter(key for key, _ in self._parts.values())

    @property
    def names(self) -> list[str]:
        """The stored tensors to read."""
        return [*self.plain, *self._parts]

    def targets(self, key: str) -> Iterator[str]:
        """The keys that the conversion of a key results in."""
        patterns = self.steps[key].target_patterns
        return (key.replace(patterns[0], pattern) for pattern in patterns)

    def add(self, name: str, tensor: Tensor, module: Any) -> dict[str, Tensor]:
        """Add a stored tensor, and return what is complete: one tensor, or none, or several."""
        if name in self.plain:
            return {self.plain[name]: tensor}
        key, pattern = self._parts[name]
        self.steps[key].add_tensor(key, name, pattern, tensor)
        self._num_missing[key] -= 1
        if self._num_missing[key]:
            return {}
        converted = self.steps.pop(key).convert(key, model=module, config=module.config)
        return {
            target: value[0] if isinstance(value, list) else value
            for target, value in converted.items()
        }

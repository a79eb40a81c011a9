"""Configurations of published models, each of which at most its own plugin may claim."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from packaging.utils import canonicalize_name

from vlcore.errors import OptionError


@dataclass(frozen=True)
class KnownModel:
    """What ``config.json`` of a published model says, in short."""

    name: str
    package: str
    """The plugin that serves it, where one is known."""
    config: Mapping[str, Any]

    @property
    def architectures(self) -> tuple[str, ...]:
        """The ``architectures`` of the configuration."""
        return tuple(self.config["architectures"])


@cache
def read_known_models() -> tuple[KnownModel, ...]:
    """Read the configurations that the kit ships."""
    text = resources.files("vlcore.testing").joinpath("known_configs.json").read_text("utf-8")
    return tuple(
        KnownModel(entry["name"], entry.get("package", ""), entry["config"])
        for entry in json.loads(text)
    )


def known_models_of(
    plugin: str, serves: Sequence[str] = (), *, architectures: Collection[str] = ()
) -> tuple[KnownModel, ...]:
    """List the configurations that a plugin must not match.

    A plugin serves the models that the kit names its package for, and those named in ``serves``.
    It also serves a model for which the kit names no package, if it registers the model's
    architecture and no other known model has an architecture of that name.

    Args:
        plugin: its distribution.
        serves: names of further configurations that it serves.
        architectures: the names of the architectures that it registers.

    Raises:
        OptionError: a name that the kit does not know.
    """
    siblings = read_known_models()
    known = {sibling.name for sibling in siblings}
    if unknown := sorted(set(serves) - known):
        raise OptionError(
            f"serves names {', '.join(unknown)}; the kit knows {', '.join(sorted(known))}"
        )
    own = canonicalize_name(plugin)
    uses = Counter(name for sibling in siblings for name in set(sibling.architectures))

    def is_served(sibling: KnownModel) -> bool:
        if sibling.name in serves or sibling.package == own:
            return True
        return not sibling.package and any(
            name in architectures and uses[name] == 1 for name in sibling.architectures
        )

    return tuple(sibling for sibling in siblings if not is_served(sibling))

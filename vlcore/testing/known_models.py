"""Configurations of published models, which only their own plugins may match."""

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
    """A published model and an excerpt of its ``config.json``."""

    name: str
    package: str
    """The plugin that serves the model, if one is known."""
    config: Mapping[str, Any]

    @property
    def architectures(self) -> tuple[str, ...]:
        """The ``architectures`` of the configuration."""
        return tuple(self.config["architectures"])


@cache
def read_known_models() -> tuple[KnownModel, ...]:
    """Read the configurations that ship with the kit."""
    text = resources.files("vlcore.testing").joinpath("known_configs.json").read_text("utf-8")
    return tuple(
        KnownModel(entry["name"], entry.get("package", ""), entry["config"])
        for entry in json.loads(text)
    )


def known_models_of(
    plugin: str, serves: Sequence[str] = (), *, architectures: Collection[str] = ()
) -> tuple[KnownModel, ...]:
    """List the configurations that a plugin must not match.

    A plugin serves the models whose ``package`` it is, and those named in ``serves``.
    It also serves a model for which the kit names no package, if it registers the model's
    architecture and no other known model has an architecture of that name.

    Args:
        plugin: the distribution name.
        serves: names of further known models that it serves.
        architectures: the architectures that it registers.

    Raises:
        OptionError: a name is unknown to the kit.
    """
    known_models = read_known_models()
    names = {known_model.name for known_model in known_models}
    if unknown := sorted(set(serves) - names):
        raise OptionError(
            f"serves names {', '.join(unknown)}; the kit knows {', '.join(sorted(names))}"
        )
    own = canonicalize_name(plugin)
    uses = Counter(name for known_model in known_models for name in set(known_model.architectures))

    def is_served(known_model: KnownModel) -> bool:
        if known_model.name in serves or known_model.package == own:
            return True
        return not known_model.package and any(
            name in architectures and uses[name] == 1 for name in known_model.architectures
        )

    return tuple(known_model for known_model in known_models if not is_served(known_model))

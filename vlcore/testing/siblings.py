"""Configurations of published models, each of which at most its own plugin may claim."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from packaging.utils import canonicalize_name

from vlcore.errors import OptionError


@dataclass(frozen=True)
class Sibling:
    """What ``config.json`` of a published model says, in short."""

    name: str
    package: str
    """The plugin that serves it, where one is known."""
    config: Mapping[str, Any]


@cache
def read_siblings() -> tuple[Sibling, ...]:
    """Read the configurations that the kit ships."""
    text = resources.files("vlcore").joinpath("data/sibling_configs.json").read_text("utf-8")
    return tuple(
        Sibling(entry["name"], entry.get("package", ""), entry["config"])
        for entry in json.loads(text)
    )


def siblings_of(plugin: str, serves: Sequence[str] = ()) -> tuple[Sibling, ...]:
    """The configurations that are none of a plugin's.

    Args:
        plugin: its distribution.
        serves: names of further configurations that it does serve.

    Raises:
        OptionError: a name that the kit does not know.
    """
    siblings = read_siblings()
    known = {sibling.name for sibling in siblings}
    if unknown := sorted(set(serves) - known):
        raise OptionError(
            f"serves names {', '.join(unknown)}; the kit knows {', '.join(sorted(known))}"
        )
    own = canonicalize_name(plugin)
    return tuple(
        sibling for sibling in siblings if sibling.name not in serves and sibling.package != own
    )

"""``Broken``: a plugin that is wrong in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from patchwork import ARCHITECTURE, REQUIRES


@dataclass(frozen=True)
class Broken:
    """A plugin that is wrong in one way."""

    fault: str
    check: str
    """The one that is meant for it."""
    actual: str
    """A fragment of the report."""
    edits: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    """Other checks that cannot but see it, next to answers; ``"rest"`` for those that need it."""
    requires: Sequence[str] = REQUIRES
    architectures: Sequence[str] = (ARCHITECTURE,)
    more: str = ""

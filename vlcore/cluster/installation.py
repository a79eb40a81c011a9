"""``import_ray``: Ray, or an error that tells how to install it."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from vlcore.errors import EngineUnavailableError


def import_ray(module: str = "ray") -> Any:
    """Import Ray or one of its modules, without its usage reports unless they are asked for.

    Args:
        module: ``"ray"``, or a module of it such as ``"ray.serve"``.

    Raises:
        EngineUnavailableError: Ray, or what the module needs, is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            f"a cluster needs Ray, and {error.name} is not installed: pip install 'vlcore[ray]'"
        ) from error

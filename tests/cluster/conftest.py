"""Runs the tests of Ray where Ray is installed: `make test-ray`."""

from __future__ import annotations

import importlib.util
import os
import warnings

# Nothing is reported, and no token is written to the home directory.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}

if importlib.util.find_spec("ray") is None:
    collect_ignore = ["ray"]
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.serve  # noqa: F401  (warns of its own use of libraries)

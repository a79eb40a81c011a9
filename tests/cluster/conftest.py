"""Runs the tests of Ray where Ray is installed: `make test-ray`."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["ray/test_*.py"]

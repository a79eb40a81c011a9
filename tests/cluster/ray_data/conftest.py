"""Runs the tests of Ray Data where Ray is installed, in a process of their own: `make test-ray`.

A process is connected to one Ray, and the other tests are connected to that of their cluster.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]

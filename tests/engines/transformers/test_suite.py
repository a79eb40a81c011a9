"""The tests of all engines, with the embedded engine."""

from engine_suite import *  # noqa: F403

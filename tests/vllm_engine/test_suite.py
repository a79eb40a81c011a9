"""The tests of all engines, with vLLM."""

from engine_suite import *  # noqa: F403

"""One cluster for all tests: its Ray takes half a minute to start."""

from cluster_fixture import cluster, started

__all__ = ["cluster", "started"]

"""Settings of all tests, here and in ``plugins/``."""

import os

import pytest

# The models of the tests are tiny: threads that wait for each other cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave the cache of whoever runs the tests alone."""
    os.environ["VLCORE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _float32_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no exact result hang on the processor: ``dtype="auto"`` is bfloat16 on some."""
    monkeypatch.setattr("vlcore._utils.device.has_native_bfloat16", lambda: False)

"""Settings of all tests, here and in ``plugins/``: no test sees which machine it runs on.

All of this is in place before the first test module, and with it torch or typer, is imported.
A test that needs another environment sets it with ``monkeypatch``.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

# The settings of the user, as far as they change what vlcore or a library does.
_FOREIGN = re.compile(
    r"VLCORE_(?!FUZZ_EXAMPLES$).*|XDG_CACHE_HOME"
    r"|(HF|HUGGINGFACE|TRANSFORMERS|SAFETENSORS|TOKENIZERS|ACCELERATE|TORCH|PYTORCH)_.*"
    r"|(ALL|HTTP|HTTPS|NO)_PROXY|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE"
    r"|COLUMNS|LINES|TERM|COLORTERM|(NO|FORCE|PY)_COLORS?|CLICOLOR(_FORCE)?|TERMINAL_WIDTH"
    r"|TTY_(COMPATIBLE|INTERACTIVE)|_?TYPER_.*|GITHUB_ACTIONS|TQDM_.*",
    re.IGNORECASE,
)
for _name in filter(_FOREIGN.fullmatch, list(os.environ)):
    del os.environ[_name]

# The models of the tests are tiny: threads that wait for each other cost more than they give,
# and the number of threads decides in which order numbers are added up.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# A model that no test has written is an error rather than a download or a leftover.
_CACHE = tempfile.mkdtemp(prefix="vlcore-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{_CACHE}/hub", "VLCORE_CACHE": f"{_CACHE}/views"}

# Until the tests run: hardly anything of what is imported and collected is garbage.
gc.disable()

# These tests replace CUDA by a substitute for the whole session.
_TURBOMIND = Path(__file__).parent / "tests" / "turbomind"
_ISOLATION = "vlcore.testing.checks.isolation"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options that set which processor the tests find, and which thread runs first."""
    parser.addoption(
        "--cpu-bfloat16",
        choices=("denied", "claimed"),
        default="denied",
        help="whether the tests find a CPU that multiplies bfloat16 natively, whatever this one "
        "does: dtype='auto' is float32 without it (the default) and bfloat16 with it",
    )
    parser.addoption(
        "--main-thread-first",
        action="store_true",
        help="let other threads continue only while the main thread waits, so that a test fails "
        "which asserts something else than what it waits for (several times slower)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin of an option."""
    if config.getoption("--main-thread-first"):
        from main_thread_first import MainThreadFirst

        config.pluginmanager.register(MainThreadFirst())


@pytest.hookimpl(tryfirst=True)  # before the tests are selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the conformance checks that observe a plugin in a separate process as slow."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        check = parameters.params.get("check") if parameters is not None else None
        if getattr(getattr(check, "function", None), "__module__", None) == _ISOLATION:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from modules and tests, which stay until the end.

    Otherwise each full collection looks at millions of objects, and some tests need one.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Let the garbage collector run, here and in the process that distributes the tests."""
    gc.enable()


def pytest_unconfigure() -> None:
    """Remove the caches."""
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Fix which devices a test and its fixtures find: no GPU, and always the same CPU.

    This is no part of the ``monkeypatch`` of a test, whose ``undo()`` therefore leaves it alone.
    """
    has_bfloat16 = item.config.getoption("--cpu-bfloat16") == "claimed"
    with pytest.MonkeyPatch.context() as pinned:
        pinned.setattr("vlcore._utils.device.has_native_bfloat16", lambda: has_bfloat16)
        has_own_devices = _TURBOMIND in item.path.parents
        if item.get_closest_marker("cuda") is None and not has_own_devices:
            pinned.setattr("torch.cuda.is_available", lambda: False)
            pinned.setattr("torch.cuda.device_count", lambda: 0)
        return (yield)

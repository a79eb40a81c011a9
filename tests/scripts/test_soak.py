"""The soak, as short as possible."""

from __future__ import annotations

import subprocess
import sys

import pytest
from documents import ROOT


@pytest.mark.slow
def test_a_short_soak_finds_no_fault() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "soak.py")]
    command += ["--seconds", "9", "--clients", "4", "--time-limit-s", "10"]
    command += ["--max-delay-s", "300", "--max-stall-ms", "300000"]  # no test of the machine
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "good: 200" in finished.stdout
    assert finished.stdout.endswith("\n0 faults\n")

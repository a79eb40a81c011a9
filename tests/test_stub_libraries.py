from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import stub_libraries

SYMBOLS = """\
                 U cuMemMap
                 U cublasCreate_v2@libcublas.so.12
                 U cudaMalloc@libcudart.so.12
                 U __cudaRegisterFatBinary@libcudart.so.12
                 U ncclGetVersion
                 U curious
                 U malloc@GLIBC_2.2.5
"""


@pytest.mark.parametrize("tool", ["gcc", "nm"])
def test_a_missing_toolchain_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else "/bin/true")
    with pytest.raises(stub_libraries.MissingToolError, match=f"^{tool} is not installed: .*gcc"):
        stub_libraries.build(tmp_path / "extension.so", tmp_path)


def test_each_function_is_put_into_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=SYMBOLS))
    assert stub_libraries.wanted_functions(Path("extension.so")) == {
        "libcuda.so.1": ["cuMemMap"],
        "libcublas.so.12": ["cublasCreate_v2"],
        "libcudart.so.12": ["cudaMalloc", "__cudaRegisterFatBinary"],
        "libnccl.so.2": ["ncclGetVersion"],
    }

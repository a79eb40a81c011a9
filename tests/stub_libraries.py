"""CUDA's libraries as do-nothing stubs, which let TurboMind's extension module be imported without.

Which functions each must have is read off the extension module. All return 100, "no device", but
for those whose result is used as a pointer while the module loads.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

SONAMES = (
    "libcuda.so.1",
    "libcudart.so.12",
    "libcublasLt.so.12",
    "libcublas.so.12",
    "libnccl.so.2",
)
_GIVES_POINTER = re.compile(
    r"__cudaRegisterFatBinary|cudaGetError(String|Name)|ncclGet(Last)?Error.*"
)
_UNVERSIONED = {r"nccl\w+": "libnccl.so.2", r"cu[A-Z]\w+": "libcuda.so.1"}


class MissingToolError(Exception):
    """A program of the C toolchain is not installed."""


def build(extension: Path, directory: Path) -> list[Path]:
    """Build the stubs that an extension module needs.

    Raises:
        MissingToolError: gcc or nm is not there.
    """
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise MissingToolError(
                f"{tool} is not installed: the tests of TurboMind build stubs of CUDA's libraries "
                "with it. Install gcc (with binutils) and run again"
            )
    functions = wanted_functions(extension)
    return [_build_one(soname, functions[soname], directory) for soname in SONAMES]


def preload(libraries: list[Path]) -> None:
    """Load the stubs, so that the extension module finds them under their names."""
    for library in libraries:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def wanted_functions(extension: Path) -> dict[str, list[str]]:
    """Name the functions that an extension module expects of each library."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(extension)], capture_output=True, text=True, check=True
    )
    functions: dict[str, list[str]] = defaultdict(list)
    for line in listed.stdout.splitlines():
        name, _, version = line.split()[-1].partition("@")
        if version in SONAMES:
            functions[version].append(name)
        for pattern, soname in _UNVERSIONED.items():
            if not version and re.fullmatch(pattern, name):
                functions[soname].append(name)
    return functions


def _build_one(soname: str, functions: list[str], directory: Path) -> Path:
    """Build one stub; CUDA's own carry a version node named like them."""
    source, versions, library = (directory / f"{soname}{end}" for end in (".c", ".map", ""))
    lines = [
        f'void *{name}() {{ static char text[64] = "a stub"; return text; }}'
        if _GIVES_POINTER.fullmatch(name)
        else f"int {name}() {{ return 100; }}"
        for name in functions
    ]
    source.write_text("\n".join(lines) + "\n")
    versions.write_text(f"{soname} {{ global: *; }};\n")
    command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}"]
    if soname.endswith(".so.12"):
        command.append(f"-Wl,--version-script,{versions}")
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    return library

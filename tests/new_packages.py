"""New plugin packages on the path of a test, without an installation."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from distributions import Site

from vlcore.cli.new.scaffold import PluginNames

TINY_CHECKPOINT = "tests/tiny_checkpoint.py"


def install_package(site: Site, names: PluginNames, texts: Mapping[str, str]) -> str:
    """Write a package and its metadata; return the name of the distribution."""
    info = site.root / f"{names.module}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {names.distribution}\nVersion: 0.1.0\n"
        "Requires-Dist: vlcore>=0.1,<0.2\n"
    )
    (info / "entry_points.txt").write_text(
        f"[vlcore.architectures]\n{names.architecture} = {names.module}\n"
    )
    for path, text in texts.items():
        if path.startswith(f"{names.module}/"):
            (site.root / path).parent.mkdir(exist_ok=True)
            (site.root / path).write_text(text, "utf-8")
            module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            site.modules.append(module)
    site.add_to_path(site.root)
    importlib.invalidate_caches()
    return names.distribution


def write_tiny_checkpoint(texts: Mapping[str, str], directory: Path, by_hand: str = "") -> Path:
    """Write the checkpoint of a package's tests, with lines written by hand after the sizes."""
    source = texts[TINY_CHECKPOINT]
    if by_hand:
        before, mark, after = source.partition("\n# The special tokens that")
        assert mark
        source = f"{before}\n{by_hand}\n{mark}{after}"
    values: dict[str, object] = {}
    exec(compile(source, TINY_CHECKPOINT, "exec"), values)
    directory.mkdir()
    values["write_checkpoint"](directory)  # type: ignore[operator]
    return directory

"""A new plugin package, written from the templates in ``package``.

What is written works as it is: a small model of its own, whose tests run the conformance kit.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import Version

from vlcore._version import __version__
from vlcore.errors import OptionError

_SUFFIX = ".jinja"
_MODULE = "MODULE"
"""Stands for the plugin's module in the templates' paths."""
_ENDINGS = re.compile(r"(For(ConditionalGeneration|CausalLM)|LMHeadModel|Model)$")
_MAX_LENGTH = 60
_PYTHON = "3.11"


@dataclass(frozen=True)
class PluginNames:
    """What a new plugin is called, everywhere."""

    distribution: str
    module: str
    architecture: str

    @classmethod
    def of(cls, name: str, architecture: str) -> PluginNames:
        """Read the names that a person gave.

        Args:
            name: of the distribution, best ``vl-plugin-…``.
            architecture: a string of ``architectures`` in config.json, such as
                ``"SomeModelForConditionalGeneration"``.

        Raises:
            OptionError: one cannot be such a name.
        """
        try:
            distribution = canonicalize_name(name, validate=True)
        except InvalidName:
            raise OptionError(
                f"{name!r} is no name of a distribution: letters, digits and single -, _ or . "
                "between them, such as vl-plugin-some"
            ) from None
        module = distribution.replace("-", "_")
        taken = module in sys.stdlib_module_names or module == "vlcore"
        if not module.isidentifier() or keyword.iskeyword(module) or taken:
            why = "is taken already" if taken else "Python cannot import"
            raise OptionError(
                f"the module of {name!r} would be {module!r}, which {why}: choose another name, "
                f"such as vl-plugin-{distribution}"
            )
        if not architecture.isidentifier() or keyword.iskeyword(architecture):
            raise OptionError(
                f"--architecture must be the name of a class, as in architectures of config.json "
                f"(SomeModelForConditionalGeneration); it is {architecture!r}"
            )
        for what, given in (("name", distribution), ("--architecture", architecture)):
            if len(given) > _MAX_LENGTH:
                raise OptionError(
                    f"{what} must have at most {_MAX_LENGTH} letters; it has {len(given)}"
                )
        return cls(distribution, module, architecture)

    @property
    def family(self) -> str:
        """What the model is called in texts."""
        return _ENDINGS.sub("", self.architecture) or self.architecture


def write_plugin(names: PluginNames, directory: str | Path | None = None) -> list[Path]:
    """Write a package that installs, passes its own tests, and is listed by ``vlcore plugins``.

    Args:
        names: what it is called.
        directory: where; by default, a new folder of the distribution's name.

    Returns:
        The files that were written, the first of which lies in the folder itself.

    Raises:
        OptionError: the folder is a file, is not empty, or cannot be written. Before that,
            nothing is.
    """
    folder = Path(names.distribution if directory is None else directory).expanduser()
    texts = render(names)
    try:
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"{folder} is a file: name another --directory")
        if folder.is_dir() and any(folder.iterdir()):
            raise OptionError(f"{folder} is not empty: name another --directory, or empty it")
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    except OSError as error:
        raise OptionError(f"{folder} cannot be written: {error}") from error
    return [folder / name for name in texts]


def render(names: PluginNames) -> dict[str, str]:
    """Give the text of each file of the package, by its path in the folder."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (the files are Python, TOML and Markdown, not HTML)
    )
    values = _values(names)
    texts = {}
    folder = resources.files("vlcore.cli.new").joinpath("package")
    for path, template in _templates(folder, PurePosixPath()):
        parts = [names.module if part == _MODULE else part for part in path.parts]
        name = PurePosixPath(*parts).as_posix().removesuffix(_SUFFIX)
        texts[name] = environment.from_string(template).render(values)
    return dict(sorted(texts.items(), key=lambda item: (item[0].count("/"), item[0])))


def _templates(folder: Traversable, inside: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    for entry in folder.iterdir():
        path = inside / entry.name
        if entry.is_dir():
            yield from _templates(entry, path)
        elif entry.name.endswith(_SUFFIX):
            yield path, entry.read_text("utf-8")


def _values(names: PluginNames) -> dict[str, Any]:
    version = Version(__version__)
    return {
        "distribution": names.distribution,
        "module": names.module,
        "architecture": names.architecture,
        "family": names.family,
        "tower": f"{names.module}_patches",
        "python": _PYTHON,
        "minor": f"{version.major}.{version.minor}",
        "next_minor": f"{version.major}.{version.minor + 1}",
    }

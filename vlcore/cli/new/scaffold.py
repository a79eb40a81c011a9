"""A new plugin package, rendered from the templates in ``package``.

The package works as it is: a small model, whose tests run the conformance kit.
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
from typing import TYPE_CHECKING, Any

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import Version

from vlcore._version import __version__
from vlcore.cli.new.source_text import import_line, literal
from vlcore.errors import OptionError

if TYPE_CHECKING:
    from vlcore.cli.new.family import TransformersFamily

_SUFFIX = ".jinja"
_MODULE = "MODULE"
"""Placeholder for the plugin's module in the paths of the templates."""
_ENDINGS = re.compile(r"(For(ConditionalGeneration|CausalLM)|LMHeadModel|Model)$")
_MAX_LENGTH = 60
_PROMPT_INPUTS = {"mrope": "grid_positions", "attention_groups": "image_groups"}
"""The function that writes the prompt inputs of a feature of a language model."""
_PYTHON = "3.11"


@dataclass(frozen=True)
class PluginNames:
    """The names of a new plugin."""

    distribution: str
    module: str
    architecture: str

    @classmethod
    def parse(cls, name: str, architecture: str) -> PluginNames:
        """Check and normalize the names.

        Args:
            name: the distribution name, preferably ``vl-plugin-…``.
            architecture: a string of ``architectures`` in config.json, such as
                ``"SomeModelForConditionalGeneration"``.

        Raises:
            OptionError: a name is not valid.
        """
        try:
            distribution = canonicalize_name(name, validate=True)
        except InvalidName:
            raise OptionError(
                f"{name!r} is not a distribution name: expected letters and digits, separated "
                "by single -, _ or ., such as vl-plugin-some"
            ) from None
        module = distribution.replace("-", "_")
        is_taken = module in sys.stdlib_module_names or module == "vlcore"
        if not module.isidentifier() or keyword.iskeyword(module) or is_taken:
            why = "is taken" if is_taken else "Python cannot import"
            raise OptionError(
                f"the module of {name!r} would be {module!r}, which {why}: choose another name, "
                f"such as vl-plugin-{distribution}"
            )
        if not architecture.isidentifier() or keyword.iskeyword(architecture):
            raise OptionError(
                f"--architecture expects a class name, as in architectures of config.json "
                f"(SomeModelForConditionalGeneration); received {architecture!r}"
            )
        for what, given in (("name", distribution), ("--architecture", architecture)):
            if len(given) > _MAX_LENGTH:
                raise OptionError(
                    f"{what} must have at most {_MAX_LENGTH} characters; it has {len(given)}"
                )
        return cls(distribution, module, architecture)

    @property
    def family(self) -> str:
        """The name of the model family in prose."""
        return _ENDINGS.sub("", self.architecture) or self.architecture


def write_plugin(
    names: PluginNames,
    directory: str | Path | None = None,
    *,
    uses_jinja: bool = False,
    family: TransformersFamily | None = None,
) -> list[Path]:
    """Write a package that installs, passes its own tests, and is listed by ``vlcore plugins``.

    Args:
        names: the names of the plugin.
        directory: where to write it. Default: a new directory named after the distribution.
        uses_jinja: whether the chat template is the Jinja template of the checkpoint.
        family: the family of transformers that the plugin serves; ``None`` for a model of your own.

    Returns:
        The files that were written; the first one is at the top of the directory.

    Raises:
        OptionError: the directory is a file, is not empty, or cannot be written. Nothing is
            written in the first two cases.
    """
    folder = Path(names.distribution if directory is None else directory).expanduser()
    texts = render(names, uses_jinja=uses_jinja, family=family)
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


def render(
    names: PluginNames, *, uses_jinja: bool = False, family: TransformersFamily | None = None
) -> dict[str, str]:
    """Render the text of each file of the package, by its path in the directory.

    The templates in ``package`` are those of every package. Those of a variant replace them.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (the files are Python, TOML and Markdown, not HTML)
    )
    environment.globals |= {"literal": literal, "import_line": import_line}
    values = _values(names) | {"uses_jinja": uses_jinja, "config_class": ""}
    folders = ["package"]
    if family is not None:
        folders.append("package_transformers")
        values |= _family_values(family)
    elif uses_jinja:
        folders.append("package_jinja")
    templates: dict[PurePosixPath, str] = {}
    for folder in folders:
        root = resources.files("vlcore.cli.new").joinpath(folder)
        templates |= dict(_templates(root, PurePosixPath()))
    if family is not None:  # the comparison with transformers takes its place
        del templates[PurePosixPath("tests/test_answers.py.jinja")]
    texts = {}
    for path, template in templates.items():
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


def _family_values(family: TransformersFamily) -> dict[str, Any]:
    inputs = next((name for name in family.requires if name in _PROMPT_INPUTS), "")
    names = ["Checkpoint", "LanguageModel", "renamed"]
    if inputs:
        names += ["ImageLayout", "PromptInputs", "TokenizedPrompt", _PROMPT_INPUTS[inputs]]
    return vars(family) | {
        "prefix": family.config_class.removesuffix("Config").replace("_", ""),
        "prompt_inputs": inputs,
        "core_imports": import_line(
            "vlcore", *sorted(names, key=lambda name: (name.islower(), name))
        ),
        "is_ambiguous": any(
            vision.startswith(text)
            for vision in family.vision_prefixes
            for text in family.text_prefixes
        ),
    }

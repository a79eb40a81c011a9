"""Uses a plugin in a process of its own, and tells what it does there that no plugin should.

Its module is imported alone, to see what that brings along. And it is used: the vision model, the
template, the language model's description and its tokenizer are loaded, and a picture is encoded,
under the eyes of an :class:`~vlcore.testing.audit_hook.AuditHook`. The checkpoint is a copy made of
links in which ``config.json`` offers remote code (``auto_map``). Whatever is new afterwards in the
checkpoint's folder, the working directory or the temporary directory counts as written too, also
where compiled code wrote it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlcore.testing.audit_hook import AuditHook, SideEffect
from vlcore.testing.report import fail

if TYPE_CHECKING:
    from vlcore.plugins.registry import PluginInfo

_MARK = "\x00vlcore\x00"
"""Stands before the answer of another process, after all that the plugin prints."""
_TIMEOUT_S = 600
_IMPORT = """
import json, sys
mark, module, sys.path[:] = json.loads(sys.argv[1])
__import__(module)
print(mark + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
_CODE_FILE = "vlcore_planted_code.py"
_CODE = 'raise RuntimeError("remote code was run")\n'


@dataclass(frozen=True)
class IsolatedImport:
    """What comes of importing a module and nothing else."""

    module: str
    printed: str
    names: frozenset[str]
    """The top-level names of all that is imported then."""


def import_isolated(module: str) -> IsolatedImport:
    """Import a module in a process of its own.

    Raises:
        CheckFailedError: it cannot be imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, json.dumps([_MARK, module, sys.path])],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
        check=False,
    )
    printed, mark, names = done.stdout.rpartition(_MARK)
    if not mark:
        fail(
            expected="a module that can be imported",
            came=(done.stderr or done.stdout).strip()[-500:] or f"exit code {done.returncode}",
            where=f"module {module}, in a process of its own",
            advice="mend what it raises",
        )
    return IsolatedImport(module, printed, frozenset(json.loads(names)))


@dataclass(frozen=True)
class IsolatedRun:
    """What was seen of a plugin, and whether it could be used to the end."""

    deeds: tuple[SideEffect, ...]
    error: str = ""
    """What ended its use before the end."""

    def of(self, kind: str) -> tuple[SideEffect, ...]:
        """The deeds of one kind."""
        return tuple(deed for deed in self.deeds if deed.kind == kind)


def run_isolated(plugin: str, module: str, checkpoint: Path, directory: Path) -> IsolatedRun:
    """Use a plugin in a process of its own.

    Args:
        plugin: the distribution.
        module: the one that serves the checkpoint.
        checkpoint: a directory.
        directory: an empty one to work in.
    """
    planted, work, temporary = (directory / name for name in ("checkpoint", "work", "temporary"))
    _plant(checkpoint, planted)
    work.mkdir()
    temporary.mkdir()
    before = _files_under(directory)
    task = {"plugin": plugin, "module": module, "checkpoint": str(planted), "path": sys.path}
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        cwd=work,
        env=os.environ
        | {"TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    _, mark, answer = done.stdout.rpartition(_MARK)
    if not mark:
        return IsolatedRun((), f"its process ended with {done.returncode}: {done.stderr[-500:]}")
    told = json.loads(answer)
    deeds = [SideEffect(**deed) for deed in told["deeds"]]
    known = {*told["passed_over"], *(deed.what.partition(" ")[2] for deed in deeds)}
    deeds += [
        SideEffect("files", f"wrote {path}", "seen afterwards: written by compiled code")
        for path in sorted(_files_under(directory) - before - known)
    ]
    return IsolatedRun(tuple(deeds), told["error"])


def _plant(checkpoint: Path, planted: Path) -> None:
    """Copy a checkpoint as links, with configurations that offer remote code."""
    for folder, folders, names in os.walk(checkpoint):
        inside = planted / Path(folder).relative_to(checkpoint)
        inside.mkdir(parents=True)
        for path in (Path(folder) / name for name in (*folders, *names)):
            if path.is_symlink() or not path.is_dir():
                (inside / path.name).symlink_to(path.resolve())
    module = _CODE_FILE.removesuffix(".py")
    offers = {
        "config.json": {
            "AutoConfig": f"{module}.Config",
            "AutoModel": f"{module}.Model",
            "AutoModelForCausalLM": f"{module}.Model",
        },
        "tokenizer_config.json": {"AutoTokenizer": [f"{module}.Tokenizer", None]},
        "preprocessor_config.json": {
            "AutoImageProcessor": f"{module}.ImageProcessor",
            "AutoProcessor": f"{module}.Processor",
        },
    }
    for name, auto_map in offers.items():
        path = planted / name
        if path.is_file():
            values = json.loads(path.read_text("utf-8"))
            path.unlink()
            path.write_text(json.dumps(values | {"auto_map": auto_map}), "utf-8")
    (planted / _CODE_FILE).write_text(_CODE, "utf-8")


def _files_under(directory: Path) -> set[str]:
    return {str(path) for path in directory.rglob("*")}


# -- in the other process


def main() -> None:
    """Read the task from standard input, and write what was seen to standard output."""
    task = json.load(sys.stdin)
    sys.path[:] = task["path"]
    # Theirs is not the plugin's: what these do when they are imported is not looked at.
    import torch
    import transformers  # noqa: F401

    import vlcore.testing.samples  # noqa: F401
    from vlcore.plugins.registry import installed_plugins

    tempfile.gettempdir()  # which tries it out with a file
    (info,) = (info for info in installed_plugins() if info.distribution == task["plugin"])
    checkpoint = Path(task["checkpoint"])
    observer = AuditHook(checkpoint, task["module"])
    sys.addaudithook(observer)
    error = ""
    with torch.inference_mode(), observer:
        try:
            _use(info, task["module"], checkpoint)
        except (Exception, SystemExit) as raised:
            error = f"{type(raised).__name__}: {raised}"
    answer = {
        "deeds": [asdict(deed) for deed in observer.deeds],
        "passed_over": sorted(observer.passed_over),
        "error": error,
    }
    sys.stdout.write(_MARK + json.dumps(answer))


def _use(info: PluginInfo, module: str, checkpoint: Path) -> None:
    """Do what people do with a plugin, up to the language model's weights."""
    from vlcore.language.model import LanguageModel
    from vlcore.plugins.registry import Plugin
    from vlcore.plugins.stages import ModelStages
    from vlcore.prompts.chat_template import write_prompt
    from vlcore.prompts.messages import Message, Text
    from vlcore.testing.samples import sample_image

    stages = ModelStages(checkpoint, plugin=Plugin(info, module))
    vision_model = stages.vision_model()
    vision_model.forward([vision_model.preprocess(sample_image((64, 48)))])
    write_prompt(stages.chat_template(), [Message("user", (Text("Hello"),))])
    language_model = stages.language_model()
    language_model.tokenizer()
    if type(language_model).to_transformers is not LanguageModel.to_transformers:
        language_model.to_transformers()

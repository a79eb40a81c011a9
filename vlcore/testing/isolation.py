"""Uses a plugin in a separate process, and records its side effects there.

The plugin's module is imported alone, to see what it imports. Then the plugin is used: the vision
model, the template, the language model's description and its tokenizer are loaded, and an image is
encoded, observed by an :class:`~vlcore.testing.audit_hook.AuditHook`. The checkpoint is a copy made
of links whose ``config.json`` offers remote code (``auto_map``). All new files in the checkpoint,
the working directory and the temporary directory count as written, including those that compiled
code wrote.
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
"""Separates the result of the other process from what the plugin prints."""
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
    """The result of importing a module and nothing else."""

    module: str
    printed: str
    names: frozenset[str]
    """The top-level names of all imported modules."""


def import_isolated(module: str) -> IsolatedImport:
    """Import a module in a separate process.

    Raises:
        CheckFailedError: the module cannot be imported.
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
            actual=(done.stderr or done.stdout).strip()[-500:] or f"exit code {done.returncode}",
            where=f"module {module}, in a separate process",
            advice="fix the error that it raises",
        )
    return IsolatedImport(module, printed, frozenset(json.loads(names)))


@dataclass(frozen=True)
class IsolatedRun:
    """The side effects of a plugin, and the error that ended its use."""

    side_effects: tuple[SideEffect, ...]
    error: str = ""
    """Empty if the plugin could be used completely."""

    def of(self, kind: str) -> tuple[SideEffect, ...]:
        """The side effects of one kind."""
        return tuple(side_effect for side_effect in self.side_effects if side_effect.kind == kind)


def run_isolated(plugin: str, module: str, checkpoint: Path, directory: Path) -> IsolatedRun:
    """Use a plugin in a separate process.

    Args:
        plugin: the distribution name.
        module: the module that serves the checkpoint.
        checkpoint: the directory of the checkpoint.
        directory: an empty working directory.
    """
    planted, work, temporary = (directory / name for name in ("checkpoint", "work", "temporary"))
    _copy_with_remote_code(checkpoint, planted)
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
    _, mark, output = done.stdout.rpartition(_MARK)
    if not mark:
        return IsolatedRun((), f"its process ended with {done.returncode}: {done.stderr[-500:]}")
    result = json.loads(output)
    side_effects = [SideEffect(**side_effect) for side_effect in result["side_effects"]]
    known = {
        *result["during_imports"],
        *(side_effect.what.partition(" ")[2] for side_effect in side_effects),
    }
    side_effects += [
        SideEffect("files", f"wrote {path}", "found afterwards: written by compiled code")
        for path in sorted(_files_under(directory) - before - known)
    ]
    return IsolatedRun(tuple(side_effects), result["error"])


def _copy_with_remote_code(checkpoint: Path, planted: Path) -> None:
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


# -- the code of the other process


def main() -> None:
    """Read the task from standard input, and write the side effects to standard output."""
    task = json.load(sys.stdin)
    sys.path[:] = task["path"]
    # Imported here so that their side effects are not attributed to the plugin.
    import torch
    import transformers  # noqa: F401

    import vlcore.testing.samples  # noqa: F401
    from vlcore.plugins.registry import installed_plugins

    tempfile.gettempdir()  # writes a test file when it is called first
    (info,) = (info for info in installed_plugins() if info.distribution == task["plugin"])
    checkpoint = Path(task["checkpoint"])
    audit_hook = AuditHook(checkpoint, task["module"])
    sys.addaudithook(audit_hook)
    error = ""
    with torch.inference_mode(), audit_hook:
        try:
            _use(info, task["module"], checkpoint)
        except (Exception, SystemExit) as raised:
            error = f"{type(raised).__name__}: {raised}"
    result = {
        "side_effects": [asdict(side_effect) for side_effect in audit_hook.side_effects],
        "during_imports": sorted(audit_hook.during_imports),
        "error": error,
    }
    sys.stdout.write(_MARK + json.dumps(result))


def _use(info: PluginInfo, module: str, checkpoint: Path) -> None:
    """Use every stage of the plugin, except the weights of the language model."""
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

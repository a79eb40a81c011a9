"""Uses a plugin in a process of its own, and tells what it does there that no plugin should.

Python's audit events are watched while the plugin is imported, the vision model, the template and
the tokenizer are loaded, and a picture is encoded. The checkpoint is a copy of links in which
``config.json`` offers remote code (``auto_map``). What is seen:

- network: names looked up and connections made through Python's sockets; they are refused;
- code: modules of the checkpoint read or run, which is refused, and pickles that name classes;
- files: files and folders that Python opens for writing, makes, moves or removes, and whatever is
  new in the checkpoint's folder, the working directory or the temporary directory afterwards; what
  a library does while it is imported is passed over.

What is not seen: what compiled code does by itself (other than in those folders), other programs
that are started, and code paths that are not taken here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_MARK = "\x00watched\x00"
_TIMEOUT_S = 600
_CODE_FILE = "vlcore_planted_code.py"
_CODE = 'raise RuntimeError("remote code was run")\n'
_NETWORK = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
    "http.client.connect",
}
_FILES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Deed:
    """Something that a plugin did."""

    kind: str
    """``"network"``, ``"code"`` or ``"files"``."""
    what: str
    where: str


@dataclass(frozen=True)
class Watched:
    """What was seen of a plugin, and whether it could be used to the end."""

    deeds: tuple[Deed, ...]
    error: str = ""
    """What ended its use before the end."""

    def of(self, kind: str) -> tuple[Deed, ...]:
        """The deeds of one kind."""
        return tuple(deed for deed in self.deeds if deed.kind == kind)


def watch(plugin: str, checkpoint: Path, directory: Path) -> Watched:
    """Use a plugin in a process of its own.

    Args:
        plugin: the distribution.
        checkpoint: a directory.
        directory: an empty one to work in.
    """
    planted, work, temporary = (directory / name for name in ("checkpoint", "work", "temporary"))
    _plant(checkpoint, planted)
    work.mkdir()
    temporary.mkdir()
    before = _files_under(directory)
    task = {"plugin": plugin, "checkpoint": str(planted), "path": sys.path}
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
        return Watched((), f"its process ended with {done.returncode}: {done.stderr[-500:]}")
    told = json.loads(answer)
    deeds = [Deed(**deed) for deed in told["deeds"]]
    known = {*told["passed_over"], *(deed.what.partition(" ")[2] for deed in deeds)}
    deeds += [
        Deed("files", f"wrote {path}", "seen afterwards: written by compiled code")
        for path in sorted(_files_under(directory) - before - known)
    ]
    return Watched(tuple(deeds), told["error"])


def _plant(checkpoint: Path, planted: Path) -> None:
    """Copy a checkpoint as links, with configurations that offer remote code."""
    for folder, _, names in os.walk(checkpoint, followlinks=True):
        inside = planted / Path(folder).relative_to(checkpoint)
        inside.mkdir(parents=True)
        for name in names:
            (inside / name).symlink_to((Path(folder) / name).resolve())
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
    # Theirs is not the plugin's: what these do when they are imported is not watched.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from vlcore.testing import subject as _

    tempfile.gettempdir()  # which tries it out with a file
    checkpoint = Path(task["checkpoint"])
    observer = Observer(checkpoint)
    sys.addaudithook(observer)
    error = ""
    with torch.inference_mode(), observer:
        try:
            _use(task["plugin"], checkpoint, observer)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    answer = {
        "deeds": [asdict(deed) for deed in observer.deeds],
        "passed_over": sorted(observer.passed_over),
        "error": error,
    }
    sys.stdout.write(_MARK + json.dumps(answer))


def _use(plugin: str, checkpoint: Path, observer: Observer) -> None:
    """Do what people do with a plugin, up to the language model's weights."""
    from vlcore.language import LanguageModel
    from vlcore.testing.pictures import picture
    from vlcore.testing.subject import Subject, encode
    from vlcore.template import write_prompt

    with observer.paused():
        subject = Subject(plugin, checkpoint)
        modules = subject.module_names
    observer.own = {name.partition(".")[0] for name in modules}
    encode(subject.stages().vision_model(), [picture((64, 48))])
    write_prompt(subject.stages().chat_template(), [{"role": "user", "content": "Hello"}])
    language_model = subject.stages().language_model()
    language_model.tokenizer()
    if type(language_model).to_transformers is not LanguageModel.to_transformers:
        language_model.to_transformers()


class Observer:
    """An audit hook that keeps what it sees while it is entered."""

    def __init__(self, checkpoint: Path) -> None:
        self.deeds: list[Deed] = []
        self.own: set[str] = set()
        """Top-level names of the plugin's modules."""
        self.passed_over: set[str] = set()
        """Files and folders that libraries made while they were imported."""
        self._checkpoint = os.path.realpath(checkpoint)
        self._is_on = False

    def __enter__(self) -> Observer:
        self._is_on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Look away."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event; what must not happen is refused."""
        if not self._is_on:
            return
        if event in _NETWORK:
            self._network(event, arguments)
        elif event == "exec":
            self._run(getattr(arguments[0], "co_filename", ""))
        elif event == "pickle.find_class":
            self._note("code", f"unpickled {arguments[0]}.{arguments[1]}")
        elif event == "open":
            self._open(*arguments)
        elif event in _FILES:
            self._touch(event.removeprefix("os."), *arguments[:1])

    def _network(self, event: str, arguments: tuple[Any, ...]) -> None:
        where = arguments[1] if event.startswith("socket.connect") else arguments[0]
        if event == "socket.sendto":
            where = arguments[1]
        if event.startswith("socket") and isinstance(where, str | bytes) and "/" in str(where):
            return  # a Unix socket
        self._note("network", f"{event} {where!r:.200}")
        raise ConnectionRefusedError("the conformance kit refuses the network")

    def _run(self, filename: object) -> None:
        if isinstance(filename, str) and self._is_remote(filename):
            self._note("code", f"ran {filename}")
            raise PermissionError("the conformance kit refuses remote code")

    def _is_remote(self, filename: str) -> bool:
        if "transformers_modules" in Path(filename).parts:
            return True
        if not filename.endswith(".py"):
            return False
        return os.path.realpath(filename).startswith(self._checkpoint + os.sep)

    def _open(self, path: object, mode: object, flags: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        name = os.fsdecode(path)
        if self._is_remote(name):
            self._note("code", f"read {name}")
            raise PermissionError("the conformance kit refuses remote code")
        writes = isinstance(flags, int) and flags & _WRITES
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            self._touch("open", name)

    def _touch(self, event: str, path: object) -> None:
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else repr(path)
        if "__pycache__" in name or name.startswith("/dev/"):
            return
        name = os.path.abspath(name)
        if _is_import_of_library(self.own):
            self.passed_over.add(name)
        else:
            self._note("files", f"{'wrote' if event == 'open' else event} {name}")

    def _note(self, kind: str, what: str) -> None:
        deed = Deed(kind, what, _caller(self.own))
        if deed not in self.deeds:
            self.deeds.append(deed)


def _stack() -> Iterator[tuple[str, FrameType]]:
    """The frames outside this module, the innermost first, each with the name of its file."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame.f_code.co_filename, frame
        frame = frame.f_back  # type: ignore[assignment]


def _is_own(filename: str, own: set[str]) -> bool:
    return not own.isdisjoint({*Path(filename).parts, Path(filename).stem})


def _is_import_of_library(own: set[str]) -> bool:
    """Whether an import stands between the plugin's innermost line and what happens."""
    for filename, _ in _stack():
        if _is_own(filename, own):
            return False
        if filename.startswith("<frozen importlib"):
            return True
    return False


def _caller(own: set[str]) -> str:
    """The plugin's innermost line, or else the innermost one outside Python's library."""
    library = sysconfig.get_path("stdlib")
    outside = "an unknown place"
    for filename, frame in _stack():
        place = f"{filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
        if _is_own(filename, own):
            return place
        is_library = filename.startswith((library, "<")) and "site-packages" not in filename
        if outside == "an unknown place" and not is_library:
            outside = place
    return outside

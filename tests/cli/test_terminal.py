from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from checkpoints import write_llava
from PIL import Image
from typer.main import get_command

from vlcore.cli import app, main
from vlcore.cli.terminal import echo, echo_path, is_valid_text, set_up_streams


def text_stream(encoding: str, errors: str = "strict", data: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding=encoding, errors=errors)


def written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"+ ? ? x ? ?\n"),
        ("cp1252", b"+ \xe9 ? x ? ?\n"),
        ("utf-8", "✓ é 你 ✗ 😀 ?\n".encode()),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_characters_that_stdout_lacks_are_replaced(
    encoding: str, errors: str, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = text_stream(encoding, errors)
    monkeypatch.setattr(sys, "stdout", stdout)
    set_up_streams()
    echo("✓ é 你 ✗ 😀 \ud83d")
    assert written(stdout) == expected


def test_characters_that_stderr_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = text_stream("ascii")
    monkeypatch.setattr(sys, "stderr", stderr)
    set_up_streams()
    echo("é \udcff", err=True)
    assert written(stderr) == b"\\xe9 \\udcff\n"


def test_an_error_handler_that_the_user_chose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = text_stream("ascii", "ignore")
    monkeypatch.setattr(sys, "stdout", stdout)
    set_up_streams()
    echo("a✓b")
    assert written(stdout) == b"ab\n"


def test_invalid_bytes_on_stdin_are_found_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", text_stream("utf-8", data=b"caf\xe9\ncaf\xc3\xa9\n"))
    set_up_streams()
    invalid, valid = sys.stdin.read().splitlines()
    assert os.fsencode(invalid) == b"caf\xe9"
    assert not is_valid_text(invalid)
    assert valid == "café"
    assert is_valid_text(valid)


def test_streams_that_are_absent_read_or_not_encoded_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin = text_stream("utf-8", data=b"one\ntwo\n")
    stdin.readline()
    monkeypatch.setattr(sys, "stdin", stdin)
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", None)
    set_up_streams()
    echo("é")
    assert stdout.getvalue() == "é\n"
    assert stdin.readline() == "two\n"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, file names are text")
def test_a_path_for_other_programs_is_written_as_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = text_stream("ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    set_up_streams()
    echo("path:")
    path = Path(os.fsdecode(b"/caf\xe9/\xff"))
    echo_path(path)
    assert written(stdout) == b"path:\n/caf\xe9/\xff\n"


def test_help_is_in_ascii() -> None:
    """``typer`` writes UTF-8 to an ASCII terminal, whose user could not read it."""
    group = get_command(app)
    context = typer.Context(group)
    texts = [group.get_help(context)]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        texts.append(command.get_help(typer.Context(command, info_name=name, parent=context)))
    for text in texts:
        assert text.isascii(), [character for character in text if not character.isascii()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["模型"], b"No such command '\\u6a21\\u578b'"), (["chat", "--nöpe"], b"--n\\xf6pe")],
)
def test_usage_errors_are_written_in_the_encoding_of_stderr(
    arguments: list[str], message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = text_stream("ascii")
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "argv", ["vlcore", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in written(stderr)


def test_the_status_of_the_process_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, code in (["--version"], 0), (["doctor", "/absent"], 1):
        monkeypatch.setattr(sys, "argv", ["vlcore", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_every_command_writes_in_the_encoding_of_the_terminal(
    tmp_path: Path, encoding: str
) -> None:
    directory = tmp_path / "modèle 模型"
    checkpoint = write_llava(directory)
    image = tmp_path / "图 é.png"
    Image.new("RGB", (8, 8)).save(image)
    commands = [
        ["plugins"],
        ["plugins", "--json"],
        ["cache"],
        ["doctor", str(checkpoint)],
        ["doctor", str(checkpoint), "--json"],
        ["explain", str(checkpoint), "你好 é"],
        ["explain", str(checkpoint), "你好 é", "--json"],
        ["chat", str(checkpoint), "你好 é", "--max-new-tokens", "2"],
        ["view", str(checkpoint), str(tmp_path / "vue 视图")],
        ["new", "vl-plugin-tiny", "--architecture", "Tiny", "--directory", str(tmp_path / "新")],
        ["check", "--list"],
        ["chat", str(tmp_path / "没有"), "Hello"],
        ["encode", str(checkpoint), str(image), "--out", str(tmp_path / "行.safetensors")],
        ["check", "vl-plugin-llava", "--model", str(checkpoint), "--only", "match-own"],
        ["serve", str(checkpoint), "--host", "没有"],
        ["serve", "--模型"],
        ["没有"],
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "vlcore", *command],
            env={
                **os.environ,
                "PYTHONIOENCODING": encoding,
                "PYTHONUTF8": "1",
                "HF_HUB_OFFLINE": "1",
                "VLCORE_CACHE": str(tmp_path / "cache"),
            },
            capture_output=True,
            check=False,
        )
        assert b"Traceback" not in done.stderr, (command, done.stderr)
        done.stderr.decode(encoding)
        if command[0] == "view":
            assert done.stdout == os.fsencode(tmp_path / "vue 视图") + b"\n"
            continue
        output = done.stdout.decode(encoding)
        if "--json" in command:
            json.loads(output)

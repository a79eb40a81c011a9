from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from checkpoints import write_llava
from PIL import Image
from typer.testing import CliRunner, Result

import vlcore
from vlcore.cli import app


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("chat") / "checkpoint")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


def chat(checkpoint: Path, *arguments: str | Path, typed: str = "") -> Result:
    command = ["chat", str(checkpoint), "--max-new-tokens", "6", *map(str, arguments)]
    return CliRunner().invoke(app, command, input=typed)


def answers(checkpoint: Path, prompts: Sequence[object]) -> list[str]:
    """What the pipeline's own chat says to the same prompts, one after another."""
    texts = []
    with vlcore.pipeline(checkpoint) as pipe:
        session = None
        for prompt in prompts:
            session = pipe.chat(prompt, session, {"max_new_tokens": 6})  # type: ignore[arg-type]
            assert session.response is not None
            texts.append(session.response.text)
    return texts


def test_one_question(checkpoint: Path, picture: Path) -> None:
    result = chat(checkpoint, "--image", picture, "What is this?")
    assert result.exit_code == 0
    assert result.stdout == f"{answers(checkpoint, [('What is this?', picture)])[0]}\n"
    assert "6 tokens" in result.stderr
    assert "tokens/s" in result.stderr


def test_several_images(checkpoint: Path, picture: Path) -> None:
    result = chat(checkpoint, "-i", picture, "-i", picture, "Same?")
    assert result.stdout == f"{answers(checkpoint, [('Same?', [picture, picture])])[0]}\n"


def test_a_conversation_has_history_and_forgets_it_when_asked(
    checkpoint: Path, picture: Path
) -> None:
    typed = f"/image {picture}\nWhat is this?\n\nAre you sure?\n/reset\nAre you sure?\n/exit\nHi\n"
    result = chat(checkpoint, typed=typed)
    with_history = answers(checkpoint, [("What is this?", picture), "Are you sure?"])
    without = answers(checkpoint, ["Are you sure?"])
    assert result.exit_code == 0
    assert result.stdout == "".join(f"{text}\n" for text in (*with_history, *without))
    assert with_history[1] != without[0]


def test_errors_in_a_conversation_leave_it_running(checkpoint: Path) -> None:
    result = chat(checkpoint, typed="/image nowhere.png\n/dance\n/help\nHello\n")
    assert result.exit_code == 0
    assert "there is no file 'nowhere.png'" in result.stderr
    assert "unknown command: /dance" in result.stderr
    assert "/reset" in result.stderr
    assert result.stdout == f"{answers(checkpoint, ['Hello'])[0]}\n"


def test_sampling_is_repeatable_with_a_seed(checkpoint: Path) -> None:
    sampled = [
        chat(checkpoint, "--temperature", "5", "--seed", seed, "Hello").stdout
        for seed in ("1", "1", "2")
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_template_is_chosen_by_name(checkpoint: Path) -> None:
    chosen = chat(checkpoint, "--chat-template", "mistral_instruct", "Hello").stdout
    assert chosen != chat(checkpoint, "Hello").stdout
    with pytest.raises(vlcore.OptionError, match="no chat template 'no_such'"):
        CliRunner().invoke(
            app,
            ["chat", str(checkpoint), "--chat-template", "no_such", "Hello"],
            catch_exceptions=False,
        )

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llava
from PIL import Image, ImageChops
from qwen_checkpoints import POINTING, write_pointing_qwen
from typer.testing import CliRunner, Result

import vlcore
from vlcore.cli import app
from vlcore.errors import OptionError
from vlcore.prompts.regions import Region, draw_regions

Answers = Callable[..., list[str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("chat") / "checkpoint")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "red.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


def chat(checkpoint: Path, *arguments: str | Path, typed: str | bytes = "") -> Result:
    command = ["chat", str(checkpoint), "--max-new-tokens", "6", *map(str, arguments)]
    return CliRunner().invoke(app, command, input=typed)


@pytest.fixture(scope="module")
def answers(checkpoint: Path) -> Iterator[Answers]:
    """Return the pipeline's answers to the same prompts, one after another."""
    with vlcore.pipeline(checkpoint) as pipe:

        def answers(*prompts: Any) -> list[str]:
            texts = []
            session = None
            for prompt in prompts:
                session = pipe.chat(prompt, session, {"max_new_tokens": 6})
                assert session.response is not None
                texts.append(session.response.text)
            return texts

        yield answers


def test_one_question(checkpoint: Path, answers: Answers, image: Path) -> None:
    result = chat(checkpoint, "--image", image, "What is this?")
    assert result.exit_code == 0
    assert result.stdout == f"{answers(('What is this?', image))[0]}\n"
    assert "6 tokens" in result.stderr
    assert "tokens/s" in result.stderr
    assert "[1 image(s), 1 encoded in 1 forward(s), " in result.stderr


def test_a_conversation_ends_with_what_was_done_to_its_images(
    checkpoint: Path, image: Path
) -> None:
    result = chat(checkpoint, typed=f"/image {image}\nWhat is this?\nAnd now?\n")
    assert "[2 image(s), 1 encoded in 1 forward(s), " in result.stderr
    assert result.stderr.endswith(" s, 1 from the cache]\n")
    assert "image(s)" not in chat(checkpoint, "Hello").stderr


def test_several_images(checkpoint: Path, answers: Answers, image: Path) -> None:
    result = chat(checkpoint, "-i", image, "-i", image, "Same?")
    assert result.stdout == f"{answers(('Same?', [image, image]))[0]}\n"


def test_a_conversation_has_history_and_forgets_it_when_asked(
    checkpoint: Path, answers: Answers, image: Path
) -> None:
    typed = f"/image {image}\nWhat is this?\n\nAre you sure?\n/reset\nAre you sure?\n/exit\nHi\n"
    result = chat(checkpoint, typed=typed)
    with_history = answers(("What is this?", image), "Are you sure?")
    without = answers("Are you sure?")
    assert result.exit_code == 0
    assert result.stdout == "".join(f"{text}\n" for text in (*with_history, *without))
    assert with_history[1] != without[0]


def test_errors_in_a_conversation_leave_it_running(checkpoint: Path, answers: Answers) -> None:
    result = chat(checkpoint, typed="/image nowhere.png\n/dance\n/help\nHello\n")
    assert result.exit_code == 0
    assert "there is no file 'nowhere.png'" in result.stderr
    assert "unknown command: /dance" in result.stderr
    assert "/reset" in result.stderr
    assert result.stdout == f"{answers('Hello')[0]}\n"


def test_an_image_may_be_quoted_escaped_or_a_file_url(
    checkpoint: Path, answers: Answers, tmp_path: Path
) -> None:
    path = tmp_path / "my photo.png"
    Image.new("RGB", (40, 30), "red").save(path)
    expected = f"{answers(('What is this?', path))[0]}\n"
    escaped = str(path).replace(" ", "\\ ")
    written = (str(path), f"'{path}'", f'"{path}"', escaped, path.as_uri(), f"file://{path}")
    typed = [f"/image {argument}\nWhat is this?\n/reset\n" for argument in written]
    result = chat(checkpoint, typed="".join(typed))
    assert result.stderr.count("is attached to the next message") == len(written), result.stderr
    assert result.stdout == expected * len(written)


def test_an_image_that_cannot_be_read_attaches_none_of_its_line(
    checkpoint: Path, answers: Answers, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    typed = f"/image {image} {tmp_path / 'broken.png'}\nHello\n"
    result = chat(checkpoint, typed=typed)
    assert "broken.png" in result.stderr
    assert "is attached" not in result.stderr
    assert result.stdout == f"{answers('Hello')[0]}\n"


def test_invalid_bytes_fail_one_message_and_keep_the_conversation(
    checkpoint: Path, answers: Answers, image: Path
) -> None:
    typed = f"/image {image}\nWhat is this?\n".encode() + b"caf\xe9?\nAre you sure?\n"
    result = chat(checkpoint, typed=typed)
    assert result.exit_code == 0
    assert "the message contains bytes that are not valid utf-8: caf\\udce9?" in result.stderr
    expected = answers(("What is this?", image), "Are you sure?")
    assert result.stdout == "".join(f"{text}\n" for text in expected)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, file names are text")
def test_an_image_whose_name_is_not_utf_8(
    checkpoint: Path, answers: Answers, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (40, 30), "red").save(path)
    expected = f"{answers(('What is this?', path))[0]}\n"
    written = (os.fsencode(path), path.as_uri().encode())
    typed = [b"/image " + argument + b"\nWhat is this?\n/reset\n" for argument in written]
    result = chat(checkpoint, typed=b"".join(typed))
    assert result.stdout == expected * len(written), result.stderr


def test_a_message_of_invalid_bytes_on_the_command_line_is_refused(checkpoint: Path) -> None:
    result = chat(checkpoint, os.fsdecode(b"caf\xe9"))
    assert isinstance(result.exception, vlcore.PromptError)
    assert "bytes that are not valid" in str(result.exception)


def test_sampling_is_repeatable_with_a_seed(checkpoint: Path) -> None:
    sampled = [
        chat(checkpoint, "--temperature", "5", "--seed", seed, "Hello").stdout
        for seed in ("1", "1", "2")
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_temperature_zero_is_greedy(checkpoint: Path) -> None:
    greedy = chat(checkpoint, "Hello").stdout
    assert chat(checkpoint, "--temperature", "0", "Hello").stdout == greedy
    options = ("--temperature", "0", "--top-p", "0.5", "--seed", "3")
    assert chat(checkpoint, *options, "Hello").stdout == greedy
    assert chat(checkpoint, "--temperature", "1", "--top-p", "0", "Hello").stdout == greedy


def test_a_response_has_the_form_that_is_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [12, 34]}', encoding="utf-8-sig")
    assert chat(checkpoint, "--json-schema", schema, "What?").stdout in ("12\n", "34\n")
    assert chat(checkpoint, "--regex", "[xy]{2}", "What?").stdout.strip("xy") == "\n"
    lines = chat(checkpoint, "--choice", "yes", "--choice", "no", typed="Is it?\nIs it?").stdout
    assert set(lines.splitlines()) <= {"yes", "no"}


def test_a_form_that_cannot_be_read_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ')
    result = chat(tmp_path, "--json-schema", schema, "What?")
    assert "the JSON schema is not JSON" in str(result.exception)
    schema.write_bytes(b"[" * 200_000)
    result = chat(tmp_path, "--json-schema", schema, "What?")
    assert "at most 131072 bytes" in str(result.exception)
    result = chat(tmp_path, "--json-schema", schema, "--regex", "a", "What?")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_an_engine_that_cannot_run_here_is_an_error_without_a_fallback(
    checkpoint: Path,
) -> None:
    refused = chat(checkpoint, "--engine", "turbomind", "--device", "cpu", "What is this?")
    assert refused.exit_code == 1
    assert "TurboMind cannot run" in str(refused.exception)
    assert not refused.stdout


def test_weights_are_converted_on_request(checkpoint: Path, image: Path) -> None:
    result = chat(checkpoint, "--weights", "int8", "--image", image, "What is this?")
    assert result.exit_code == 0
    assert "6 tokens" in result.stderr
    refused = chat(checkpoint, "--weights", "int3", "What is this?")
    assert isinstance(refused.exception, OptionError)
    assert "weights must be 'int8', 'int4' or None; it is 'int3'" in str(refused.exception)


def test_a_template_is_chosen_by_name(checkpoint: Path) -> None:
    chosen = chat(checkpoint, "--chat-template", "mistral_instruct", "Hello").stdout
    assert chosen != chat(checkpoint, "Hello").stdout
    with pytest.raises(vlcore.OptionError, match="no chat template 'no_such'"):
        CliRunner().invoke(
            app,
            ["chat", str(checkpoint), "--chat-template", "no_such", "Hello"],
            catch_exceptions=False,
        )


# -- drawings


@pytest.fixture(scope="module")
def pointing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pointing_qwen(tmp_path_factory.mktemp("pointing") / "checkpoint")


def draw(checkpoint: Path, file: Path, *arguments: str | Path, typed: str = "") -> Result:
    command = ["chat", str(checkpoint), "--draw", str(file), *map(str, arguments)]
    return CliRunner().invoke(app, command, input=typed)


def test_what_an_answer_points_at_is_drawn(pointing: Path, image: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.png"
    result = draw(pointing, file, "-i", image, "Where is the dog?")
    assert result.exit_code == 0
    assert result.stdout == f"{POINTING}\n"
    assert f"{file} shows the regions of the response (1)" in result.stderr
    expected = draw_regions(Image.open(image), [Region("dog", (4, 6, 28, 24))])
    with Image.open(file) as drawn:
        assert ImageChops.difference(drawn, expected).getbbox() is None


def test_a_conversation_draws_on_its_last_image(
    pointing: Path, image: Path, tmp_path: Path
) -> None:
    large, file = tmp_path / "large.png", tmp_path / "out.png"
    Image.new("RGB", (400, 300), "blue").save(large)
    typed = f"Hello\n/image {image}\nWhere?\n/image {large}\nAnd here?\nAgain?\n"
    result = draw(pointing, file, typed=typed)
    assert result.exit_code == 0
    assert f"the conversation has no image: {file} was not written" in result.stderr
    assert result.stderr.count("shows the regions of the response") == 3
    with Image.open(file) as drawn:
        assert drawn.size == (400, 300)


def test_an_answer_that_points_at_nothing_draws_nothing(
    pointing: Path, image: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.png"
    result = draw(pointing, file, "-i", image, "--max-new-tokens", "2", "Where?")
    assert result.exit_code == 0
    assert f"the response refers to no region: {file} was not written" in result.stderr
    assert not file.exists()


def test_a_model_without_regions_is_refused_before_it_loads(
    checkpoint: Path, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())  # no weights
    result = draw(tmp_path, tmp_path / "out.png", "-i", image, "Where?")
    assert isinstance(result.exception, vlcore.OptionError)
    assert "vl-plugin-llava does not support regions for" in str(result.exception)


@pytest.mark.parametrize("name", ["out", "out.txt", "nowhere/out.png"])
def test_an_unwritable_drawing_is_reported_before_the_model_loads(
    pointing: Path, image: Path, tmp_path: Path, name: str
) -> None:
    result = draw(tmp_path, tmp_path / name, "-i", image, "Where?")
    assert isinstance(result.exception, vlcore.OptionError)
    assert "--draw expects an image file" in str(result.exception)


def test_a_failed_drawing_is_reported(pointing: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    result = draw(pointing, tmp_path / "out.png", "-i", image, "Where?")
    assert result.stdout == f"{POINTING}\n"
    assert isinstance(result.exception, vlcore.OptionError)
    assert "--draw cannot write" in str(result.exception)


def test_a_drawing_needs_an_image(pointing: Path, tmp_path: Path) -> None:
    result = draw(pointing, tmp_path / "out.png", "Where?")
    assert result.exit_code == 2
    assert "pass --image" in result.stderr

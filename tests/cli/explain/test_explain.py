from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llava
from typer.testing import CliRunner, Result

import vlcore
from vlcore.cli import app

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "demo" / "tiny-llava"
IMAGE = ROOT / "demo" / "images" / "circle_and_square.png"
BANNER = ROOT / "demo" / "images" / "banner.png"


def explain(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def as_json(*arguments: object) -> dict[str, Any]:
    result = explain(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    explained: dict[str, Any] = json.loads(result.stdout)
    return explained


def test_the_table_of_the_demo_model() -> None:
    result = explain(DEMO, "-i", IMAGE, "Is é\tred?")
    assert result.exit_code == 0
    lines = [re.sub(r" +", " ", line).strip() for line in result.stdout.splitlines()]
    assert lines[0].startswith(f"{DEMO}, vl-plugin-llava ")
    assert lines[2] == "position token kind text"
    assert lines[3] == "0 1 control <s>"
    assert lines[4] == "1 292 text ␣A"
    rows = lines.index("33–96 image 0 embeddings 0–63 of 64")
    assert lines[rows + 1 : rows + 3] == ["97 520 text ␣", "98 13 text \\n"]
    shown = [line.split()[-1] for line in lines[rows + 3 : lines.index("", rows)]]
    assert shown == ["Is", "␣", "<0xC3>", "<0xA9>", "\\t", "red", "?", "␣ASSISTANT", ":"]
    assert f"image 0 {IMAGE}, 400 x 300, 64 embeddings" in lines
    assert "stops at </s> (2)" in lines
    assert re.fullmatch(
        r"length (\d+) = 1 special tokens \+ \d+ text tokens \+ 64 image embeddings", lines[-2]
    )
    length = int(lines[-2].split()[1])
    assert lines[-1] == f"context 1024, {1024 - length} left for the response"


def test_json_has_the_fields_that_are_documented() -> None:
    explained = as_json(DEMO, "-i", IMAGE, "-i", BANNER, "Same?")
    assert set(explained) == {
        "model", "plugin", "plugin_version", "template", "prompt", "images", "stop",
        "num_control_tokens", "num_text_tokens", "num_image_rows",
        "length", "context_length", "num_left",
    }  # fmt: skip
    assert explained["plugin"] == "vl-plugin-llava"
    assert explained["prompt"][0] == {
        "kind": "control", "position": 0, "token_id": 1, "piece": "<s>", "text": "<s>",
    }  # fmt: skip
    first, second = (line for line in explained["prompt"] if line["kind"] == "image")
    assert first == {
        "kind": "image", "position": 33, "image": 0,
        "first_row": 0, "last_row": 63, "num_rows": 64,
    }  # fmt: skip
    assert (second["image"], second["position"]) == (1, 33 + 64 + 2)
    assert explained["images"][1] == {
        "source": str(BANNER), "width": 640, "height": 200, "num_rows": 64, "was_encoded": False,
    }  # fmt: skip
    assert explained["stop"] == {"token_ids": [2], "texts": []}
    assert explained["num_image_rows"] == 128
    assert explained["length"] == (
        explained["num_control_tokens"] + explained["num_text_tokens"] + 128
    )
    assert explained["num_left"] == explained["context_length"] - explained["length"]


def test_every_documented_field_is_there() -> None:
    documented = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    explained = as_json(DEMO, "-i", IMAGE, "Hi")
    fields = set(explained) | set(explained["images"][0]) | set(explained["stop"])
    fields |= {field for line in explained["prompt"] for field in line}
    assert [field for field in sorted(fields) if f"`{field}`" not in documented] == []


def test_a_prompt_that_is_too_long_is_shown_and_says_so(tmp_path: Path) -> None:
    short = write_llava(tmp_path / "short", max_position_embeddings=8)
    result = explain(short, "Hello")
    assert result.exit_code == 0
    assert "<s>" in result.stdout
    assert "the prompt is TOO LONG" in result.stdout.splitlines()[-1]
    explained = as_json(short, "Hello")
    assert explained["num_left"] == 0
    assert explained["length"] > explained["context_length"] == 8


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": str(IMAGE)}}]},
    {"role": "assistant", "content": "A circle."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And this?"}, {"type": "image", "path": str(BANNER)}],
    },
]


@pytest.mark.parametrize("document", [CONVERSATION, {"model": "x", "messages": CONVERSATION}])
def test_a_conversation_is_read_from_a_file_or_standard_input(
    document: object, tmp_path: Path
) -> None:
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(document), "utf-8")
    explained = as_json(DEMO, "--messages", file)
    assert [image["source"] for image in explained["images"]] == [str(IMAGE), str(BANNER)]
    text = "".join(line.get("text") or "" for line in explained["prompt"])
    assert text.index("Be brief.") < text.index("A circle.") < text.index("And this?")
    arguments = ["explain", str(DEMO), "--messages", "-", "--json"]
    piped = CliRunner().invoke(app, arguments, input=json.dumps(document))
    assert json.loads(piped.stdout) == explained


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no messages could be read from"),
        (b"[" * 100_000, "no messages could be read from"),
        (b'"Hello"', "must contain a list of messages"),
        (b'["Hello"]', "must contain a list of messages"),
        (b'{"prompt": "Hello"}', "must contain a list of messages"),
        (b"[]", "at least one message"),
        (b'[{"role": "user", "content": [{"type": "image"}]}]', "message 0 has no image"),
    ],
)
def test_a_file_without_a_conversation_is_an_error(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "messages.json"
    file.write_bytes(content)
    with pytest.raises(vlcore.PromptError, match=message):
        CliRunner().invoke(
            app, ["explain", str(DEMO), "--messages", str(file)], catch_exceptions=False
        )


@pytest.mark.parametrize(
    "arguments", [[], ["Hello", "--messages", "-"], ["--messages", "-", "-i", IMAGE]]
)
def test_either_a_message_or_a_conversation_is_explained(arguments: list[object]) -> None:
    assert explain(DEMO, *arguments).exit_code == 2


def test_a_template_is_chosen_by_name() -> None:
    own = as_json(DEMO, "Hello")["prompt"]
    assert as_json(DEMO, "Hello", "--chat-template", "mistral_instruct")["prompt"] != own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere", "Hello"], "there is no directory './nowhere'"),
        ([DEMO, "Hello", "-i", "nowhere.png"], "there is no file 'nowhere.png'"),
        ([DEMO, "Hello", "--chat-template", "no_such"], "no chat template 'no_such'"),
        ([DEMO, "Hello", "--plugin", "vl-plugin-unknown"], "'vl-plugin-unknown' is not installed"),
    ],
)
def test_errors_are_those_of_the_other_commands(arguments: list[object], message: str) -> None:
    result = explain(*arguments)
    assert isinstance(result.exception, vlcore.VlcoreError)
    assert message in str(result.exception)

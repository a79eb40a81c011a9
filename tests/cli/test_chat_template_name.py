"""A plugin with a single chat template: naming one is an error wherever a name can be given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributions import make_site
from patchwork import install_patchwork, write_patchwork
from PIL import Image
from typer.testing import CliRunner

import vlcore
from vlcore.cli import app

REFUSAL = r"plugin vl-plugin-patchwork 1\.0 has one chat template .* leave 'plain' out"
ONE_TEMPLATE = {
    "def vl_chat_template(checkpoint, name)": "def vl_chat_template(checkpoint)",
    "return load_chat_template(name)": "return load_chat_template(None)",
}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a checkpoint of a plugin whose hook takes no name."""
    for site in make_site(tmp_path / "site", monkeypatch):
        install_patchwork(site, ONE_TEMPLATE)
        yield write_patchwork(tmp_path / "model")


def run(*arguments: object) -> None:
    CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def draw(checkpoint: Path) -> None:
    image = checkpoint / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    run("chat", checkpoint, "?", "--chat-template", "plain", "-i", image, "--draw", "out.png")


@pytest.mark.parametrize(
    "use",
    [
        lambda model: vlcore.load_chat_template(model, "plain"),
        lambda model: vlcore.pipeline(model, device="cpu", chat_template="plain"),
        lambda model: run("chat", model, "Hello", "--chat-template", "plain"),
        lambda model: run("explain", model, "Hello", "--chat-template", "plain"),
        lambda model: run("serve", model, "--port", 0, "--chat-template", "plain"),
        draw,
    ],
    ids=["load_chat_template", "pipeline", "chat", "explain", "serve", "chat --draw"],
)
def test_a_name_is_refused(checkpoint: Path, use: Callable[[Path], object]) -> None:
    with pytest.raises(vlcore.OptionError, match=REFUSAL):
        use(checkpoint)


def test_doctor_reports_the_refusal(checkpoint: Path) -> None:
    arguments = ["doctor", str(checkpoint), "--device", "cpu", "--json"]
    refused = CliRunner().invoke(app, [*arguments, "--chat-template", "plain"])
    (finding,) = [
        one for one in json.loads(refused.stdout)["findings"] if one["verdict"] == "problem"
    ]
    assert (refused.exit_code, finding["topic"]) == (1, "template")
    assert "has one chat template" in finding["text"]
    assert CliRunner().invoke(app, arguments).exit_code == 0

"""One ``architectures`` name, several plugins: each checkpoint finds its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import importlib_metadata
import pytest
from checkpoints import write_llava, write_yi
from distributions import Site, make_site, plugin_source
from typer.testing import CliRunner

import vlcore
from vlcore import NoPluginError, PluginConflictError
from vlcore.cli import app
from vlcore.plugins.registry import find_plugin

ARCHITECTURES = ["LlavaLlamaForCausalLM"]
WRITERS: dict[str, Callable[[Path], Path]] = {
    "vl-plugin-yi": write_yi,
    "vl-plugin-llava": write_llava,
}
OTHER = {"vl-plugin-yi": "vl-plugin-llava", "vl-plugin-llava": "vl-plugin-yi"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


def plugin_of(directory: Path, *, plugin: str | None = None) -> str:
    config = json.loads((directory / "config.json").read_text())
    return find_plugin(config, plugin=plugin).info.distribution


def uninstall(distribution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib_metadata.distributions
    monkeypatch.setattr(
        "vlcore.plugins.metadata.importlib_metadata.distributions",
        lambda: [one for one in found() if one.metadata["Name"] != distribution],
    )


@pytest.mark.parametrize("folder", ["yi-vl-6b", "llava-v1.5-7b", "model"])
@pytest.mark.parametrize("owner", WRITERS)
def test_each_checkpoint_finds_its_own_plugin_in_a_folder_of_any_name(
    tmp_path: Path, owner: str, folder: str
) -> None:
    directory = WRITERS[owner](tmp_path / folder)
    assert plugin_of(directory) == owner
    shutil.move(directory, tmp_path / "renamed")
    stop = {"vl-plugin-yi": ("###",), "vl-plugin-llava": ("</s>",)}
    assert vlcore.load_chat_template(tmp_path / "renamed").stop == stop[owner]


@pytest.mark.parametrize("owner", WRITERS)
def test_one_alone_serves_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    uninstall(OTHER[owner], monkeypatch)
    assert plugin_of(WRITERS[owner](tmp_path)) == owner


@pytest.mark.parametrize("owner", WRITERS)
def test_the_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    uninstall(owner, monkeypatch)
    with pytest.raises(NoPluginError) as caught:
        plugin_of(WRITERS[owner](tmp_path))
    message = str(caught.value)
    assert f"- {OTHER[owner]} 0.1.0 does not serve it: its projector" in message
    assert "packages known to serve this checkpoint, by its config.json:" in message
    assert f"- pip install {owner}  (" in message
    assert f"pip install {OTHER[owner]}" not in message


@pytest.mark.parametrize("owner", WRITERS)
def test_with_neither_the_right_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    uninstall("vl-plugin-yi", monkeypatch)
    uninstall("vl-plugin-llava", monkeypatch)
    with pytest.raises(NoPluginError) as caught:
        plugin_of(WRITERS[owner](tmp_path))
    assert f"pip install {owner}  (" in str(caught.value)
    assert f"pip install {OTHER[owner]}" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 64},
        {"mm_projector_type": "resampler", "mm_vision_tower": "openai/clip-vit-large-patch14"},
        {"mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "OpenGVLab/InternViT-6B-224px"},
    ],
    ids=str,
)
def test_both_are_named_for_a_checkpoint_that_may_be_neithers(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object]
) -> None:
    uninstall("vl-plugin-yi", monkeypatch)
    uninstall("vl-plugin-llava", monkeypatch)
    with pytest.raises(NoPluginError) as caught:
        find_plugin({"architectures": ARCHITECTURES} | config)
    message = str(caught.value)
    assert "packages known to serve this architecture name:" in message
    assert "pip install vl-plugin-yi  (Yi-VL)" in message
    assert "pip install vl-plugin-llava  (LLaVA" in message


@pytest.mark.parametrize("owner", WRITERS)
def test_a_third_plugin_that_claims_a_checkpoint_is_a_conflict(
    tmp_path: Path, site: Site, owner: str
) -> None:
    site.install("vl-plugin-greedy", ARCHITECTURES)
    directory = WRITERS[owner](tmp_path / "model")
    with pytest.raises(PluginConflictError) as caught:
        plugin_of(directory)
    assert f"vl-plugin-greedy 1.0 and {owner} 0.1.0 both serve" in str(caught.value)
    assert plugin_of(directory, plugin=owner) == owner
    assert plugin_of(directory, plugin="vl-plugin-greedy") == "vl-plugin-greedy"
    with vlcore.pipeline(directory, plugin=owner) as pipe:
        assert pipe("Hi", {"max_new_tokens": 2, "ignore_eos": True}).generate_token_len == 2


def test_the_command_line_resolves_the_conflict(tmp_path: Path, site: Site) -> None:
    site.install("vl-plugin-greedy", ARCHITECTURES, plugin_source())
    command = ["chat", str(write_yi(tmp_path / "model")), "--max-new-tokens", "2", "Hi"]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, PluginConflictError)
    assert "--plugin vl-plugin-greedy" in str(refused.exception)
    answered = CliRunner().invoke(app, [*command, "--plugin", "vl-plugin-yi"])
    assert answered.exit_code == 0
    assert "2 tokens" in answered.stderr

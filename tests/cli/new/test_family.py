"""Plugins for families that transformers ships, from the name of a configuration class."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributions import Site, make_site
from documents import ROOT, blocks_of
from new_packages import TINY_CHECKPOINT, install_package, write_tiny_checkpoint
from public_names import internal_names_in_code
from typer.testing import CliRunner

from vlcore.cli import app
from vlcore.cli.new.family import TransformersFamily, inspect_family
from vlcore.cli.new.scaffold import PluginNames, render
from vlcore.errors import OptionError
from vlcore.testing import CHECKS, check_plugin, compare_with_transformers

HOWTO = ROOT / "docs" / "howto" / "from-transformers.md"
LINES_OF_THE_HOWTO = next(
    block.text.split("\n", 1)[1] for block in blocks_of([HOWTO]) if block.file == TINY_CHECKPOINT
)
BY_HAND = {
    "InternVLConfig": LINES_OF_THE_HOWTO,
    "LlavaConfig": 'PROCESSOR["num_additional_image_tokens"] = 1',
    "DeepseekVLConfig": 'PROCESSOR["num_image_tokens"] = 16',
    "Qwen3VLConfig": (
        'IMAGE_PROCESSOR.update(size={"shortest_edge": 56 * 56, "longest_edge": 140 * 140})\n'
        'IMAGE_PROCESSOR["patch_size"] = 14\n'
        'CONFIG["vision_config"].update(deepstack_visual_indexes=[0, 1])\n'
        'CONFIG["vision_config"].update(num_position_embeddings=64)'
    ),
    "Qwen2VLConfig": (
        'IMAGE_PROCESSOR.update(size={"shortest_edge": 56 * 56, "longest_edge": 140 * 140})\n'
        'CONFIG["vision_config"]["hidden_size"] = 64'
    ),
    "Gemma3Config": 'PROCESSOR["image_seq_length"] = CONFIG["mm_tokens_per_image"] = 4',
    "Idefics3Config": (
        'PROCESSOR["image_seq_len"] = 4\nIMAGE_PROCESSOR["size"] = {"longest_edge": 112}'
    ),
}

SERVES = {
    "LlavaConfig": ["llava-1.5-7b-hf", "llava-interleave-qwen-7b-hf"],
    "Qwen2VLConfig": ["Qwen2-VL-7B-Instruct"],
}
"""The known models of the kit that are those of the family."""
IN_PROCESSES_OF_THEIR_OWN = {
    *("light-import", "quiet-import", "no-network", "no-remote-code", "no-files-written"),
}
"""The checks that take seconds; those of one package are those of all."""


@pytest.fixture(scope="module")
def intern() -> TransformersFamily:
    return inspect_family("InternVLConfig")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path, monkeypatch)


def names_of(family: TransformersFamily) -> PluginNames:
    return PluginNames.parse(f"vl-plugin-new-{family.model_type}", family.architecture)


def package_of(family: TransformersFamily) -> dict[str, str]:
    return render(names_of(family), family=family)


def test_the_modules_and_prefixes_of_a_family_are_found(intern: TransformersFamily) -> None:
    assert intern.architecture == "InternVLForConditionalGeneration"
    assert intern.has_tower
    assert intern.requires == ()
    assert intern.vision_prefixes == (
        "model.multi_modal_projector.",
        "model.vision_tower.",
        "multi_modal_projector.",
        "vision_tower.",
    )
    assert intern.text_prefixes == {
        "model.language_model.": "model.",
        "lm_head.": "lm_head.",
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.",
    }
    assert intern.num_layouts == 2
    assert intern.placeholder == intern.row_token == "<context_image>"


@pytest.mark.parametrize(
    ("config_class", "features"),
    [
        ("Qwen3VLConfig", {"mrope", "deepstack"}),
        pytest.param("Gemma3Config", {"attention_groups"}, marks=pytest.mark.slow),
        pytest.param("Qwen2VLConfig", {"mrope"}, marks=pytest.mark.slow),
    ],
)
def test_what_a_language_model_requires_is_declared(config_class: str, features: set[str]) -> None:
    assert set(inspect_family(config_class).requires) == features


@pytest.mark.parametrize(
    "config_class",
    [
        "InternVLConfig",
        pytest.param("LlavaOnevisionConfig", marks=pytest.mark.slow),
        pytest.param("Qwen3VLConfig", marks=pytest.mark.slow),
    ],
)
def test_the_package_is_clean_and_uses_public_names(config_class: str, tmp_path: Path) -> None:
    for path, text in package_of(inspect_family(config_class)).items():
        if path.endswith(".py"):
            ast.parse(text)
            assert internal_names_in_code(text) == []
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, "utf-8")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("config_class", BY_HAND)
def test_the_plugin_equals_transformers(config_class: str, site: Site, tmp_path: Path) -> None:
    family = inspect_family(config_class)
    texts = package_of(family)
    name = install_package(site, names_of(family), texts)
    by_hand = BY_HAND[config_class]
    checkpoint = write_tiny_checkpoint(texts, tmp_path / "checkpoint", by_hand)
    report = compare_with_transformers(checkpoint, plugin=name)
    assert report.ok, str(report)
    in_processes = set() if config_class == "InternVLConfig" else IN_PROCESSES_OF_THEIR_OWN
    checks = [check.name for check in CHECKS if check.name not in in_processes]
    conformance = check_plugin(
        checkpoint, plugin=name, only=checks, serves=SERVES.get(config_class, ())
    )
    assert conformance.ok, str(conformance)


def test_few_lines_are_written_by_hand() -> None:
    """The plugin needs none of the 40 lines that it may, and its tests few of 20."""
    assert len(LINES_OF_THE_HOWTO.strip().splitlines()) <= 20


@pytest.mark.parametrize(
    ("config_class", "message"),
    [
        ("NoSuchConfig", "expects the configuration class of a vision-language model"),
        ("BertConfig", "Known: .*InternVLConfig"),
        ("MllamaConfig", "does not read images as embeddings"),
    ],
)
def test_a_family_that_cannot_be_written_is_refused(config_class: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        inspect_family(config_class)


@pytest.mark.parametrize(
    "options",
    [[], ["--from-transformers", "InternVLConfig", "--architecture", "OtherForCausalLM"]],
    ids=["neither", "both"],
)
def test_the_architecture_is_that_of_the_family(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["new", "vl-plugin-mosaic", *options]).exit_code == 2

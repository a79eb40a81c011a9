"""A plugin for InternVL is compared with transformers, as it is and with one fault at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_json
from distributions import Site, make_site
from internvl import NAME, install_intern, write_intern

from vlcore import Checkpoint
from vlcore.errors import ConfigError, OptionError
from vlcore.processors import load_processor
from vlcore.testing import Outcome, Report, compare_with_transformers
from vlcore.testing.conversations import sample_conversations
from vlcore.testing.samples import sample_image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_intern(tmp_path_factory.mktemp("intern") / "model")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path, monkeypatch)


def compare(checkpoint: Path, **options: Any) -> Report:
    return compare_with_transformers(checkpoint, plugin=NAME, **options)


def failed(report: Report) -> set[str]:
    return {result.name.removeprefix("transformers-") for result in report.of(Outcome.FAILED)}


def test_a_right_plugin_passes(site: Site, checkpoint: Path) -> None:
    install_intern(site)
    report = compare(checkpoint)
    assert report.ok, str(report)
    assert [result.name for result in report.of(Outcome.PASSED)] == [
        "transformers-pixels",
        "transformers-rows",
        "transformers-ids",
        "transformers-settings",
        "transformers-logits",
        "transformers-tokens",
    ]


@pytest.mark.parametrize(
    ("edits", "failing"),
    [
        pytest.param(
            {"return grid.transpose(1, 2).flatten(1, 2)": "return grid.flatten(1, 2)"},
            {"rows", "logits", "tokens"},
            id="pixel shuffle in the wrong order",
        ),
        pytest.param(
            {'(Control("<img>"), Rows(num_rows)': "(Rows(num_rows)"},
            {"ids"},
            id="no <img> before the rows",
        ),
        pytest.param(
            {"crop_to_patches=True, return": "crop_to_patches=False, return"},
            {"pixels", "rows", "ids"},
            id="no tiles at all",
        ),
        pytest.param(
            {'"tie_word_embeddings": checkpoint': '"max_position_embeddings": 4000, '
             '"tie_word_embeddings": checkpoint'},
            {"settings"},
            id="a setting that shows in no value",
        ),
    ],
)  # fmt: skip
def test_a_wrong_plugin_fails(
    site: Site, checkpoint: Path, edits: dict[str, str], failing: set[str]
) -> None:
    install_intern(site, edits)
    report = compare(checkpoint)
    assert not report.ok
    assert failed(report) == failing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edits", "failing"),
    [
        pytest.param(
            {'"tie_word_embeddings": checkpoint': '"rms_norm_eps": 1.0, "tie_word_embeddings": '
             "checkpoint"},
            {"settings", "logits", "tokens"},
            id="another epsilon of the language model",
        ),
        pytest.param(
            {'ImageInputs(tiles["pixel_values"])': 'ImageInputs(tiles["pixel_values"].flip(0))'},
            {"pixels", "rows", "logits", "tokens"},
            id="tiles in reverse order",
        ),
        pytest.param(
            {'image.convert("RGB")': 'image.convert("L").convert("RGB")'},
            {"pixels", "rows", "logits", "tokens"},
            id="images without colours",
        ),
        pytest.param(
            {"[:, 1:]": "[:, :-1]"},
            {"rows", "logits", "tokens"},
            id="the class token among the patches",
        ),
        pytest.param(
            {'Control("</img>")': 'Control("</img>\\n")'},
            {"ids"},
            id="a line break after the rows",
        ),
    ],
)  # fmt: skip
def test_another_wrong_plugin_fails(
    site: Site, checkpoint: Path, edits: dict[str, str], failing: set[str]
) -> None:
    install_intern(site, edits)
    assert failed(compare(checkpoint)) == failing


def test_an_expected_failure_is_reported_as_such(site: Site, checkpoint: Path) -> None:
    install_intern(site, {'(Control("<img>"), Rows(num_rows)': "(Rows(num_rows)"})
    own = {
        "short": [{"role": "user", "content": [{"type": "image", "image": sample_image((9, 9))}]}]
    }
    excused = {"transformers-ids": "the marks are left out", "transformers-rows": "no reason"}
    report = compare(checkpoint, conversations=own, excused=excused)
    assert report["transformers-ids"].outcome is Outcome.EXCUSED
    assert report["transformers-rows"].outcome is Outcome.FAILED


def test_a_checkpoint_whose_processor_does_not_fit_its_model_is_refused(
    site: Site, tmp_path: Path
) -> None:
    install_intern(site)
    checkpoint = write_intern(tmp_path / "model")
    settings = json.loads((checkpoint / "processor_config.json").read_text("utf-8"))
    del settings["image_seq_length"]  # it then has the default of the class, 256
    write_json(checkpoint / "processor_config.json", settings)
    with pytest.raises(ConfigError, match="Settings that a file leaves out"):
        compare(checkpoint)
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", "utf-8")
    with pytest.raises(ConfigError, match="none of the conversations with an image"):
        compare(checkpoint)


def test_a_checkpoint_that_transformers_does_not_know_is_refused(
    site: Site, tmp_path: Path
) -> None:
    install_intern(site)
    checkpoint = write_intern(tmp_path / "model")
    with pytest.raises(ConfigError, match="row_token is '<nowhere>'"):
        compare(checkpoint, row_token="<nowhere>")
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    write_json(checkpoint / "config.json", config | {"architectures": ["NoSuchModel"]})
    with pytest.raises(OptionError, match="none of the architectures"):
        compare(checkpoint)


def test_a_processor_without_lists_of_lists_of_images_is_called_with_the_prompt(
    site: Site, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_intern(site)
    processor = load_processor(Checkpoint.open(checkpoint))
    render = processor.apply_chat_template

    def refuse(messages: Any, *, tokenize: bool, **options: Any) -> Any:
        if tokenize:
            raise ValueError("nested images are not supported")
        return render(messages, tokenize=False, **options)

    monkeypatch.setattr(processor, "apply_chat_template", refuse)
    (messages,) = [list(sample_conversations()["two images before the text"])]
    report = compare(checkpoint, processor=processor, conversations={"two": messages})
    assert report.ok, str(report)
    assert {result.name for result in report.of(Outcome.DOES_NOT_APPLY)} == {
        "transformers-pixels",  # no conversation has a single image
        "transformers-rows",
        "transformers-videos",
        "transformers-frames",
    }
    monkeypatch.setattr(processor, "apply_chat_template", lambda *_, **__: 1 / 0)
    with pytest.raises(ConfigError, match="none of the conversations with an image"):
        compare(checkpoint, processor=processor)


def test_conversations_need_an_image(site: Site, checkpoint: Path) -> None:
    install_intern(site)
    with pytest.raises(OptionError, match="must have an image"):
        compare(checkpoint, conversations=[[{"role": "user", "content": "Hello"}]])

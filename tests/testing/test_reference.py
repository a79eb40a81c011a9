"""Values of another implementation: recorded, read, and compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from distributions import Site, make_site
from patchwork import NAME, install_patchwork, write_patchwork
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import vlcore
from vlcore import OptionError
from vlcore.testing import Outcome, Report, check_plugin, record_reference
from vlcore.testing.reference import FORMAT, Reference
from vlcore.testing.samples import sample_image

IMAGES = [sample_image((40, 30)), sample_image((30, 40), 1).convert("L")]
PROMPTS = [[1, 300, -1, 305, -2, 306], [1, 310, 311]]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": 1},
                {"type": "text", "text": "Same?"},
                {"type": "image", "image": 0},
            ],
        }
    ],
]
RECORDED_IDS = [
    [1, 535, 683, 426, 436, 645, 458, 683],
    [
        *(1, 535, 683, 642),
        *([-1, -1, 642, 62] * 4),
        *(13, 662, 343, 643, 694),
        *([-1, -1, -1, -1, 642, 62] * 2),
        *(13, 458, 683),
    ],
]
"""The prompts of the conversations, with four rows of two embeddings and two rows of four."""
CHECKS = ["reference-rows", "reference-logits", "reference-conversations"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patchwork(tmp_path_factory.mktemp("model") / "patchwork")


class Release:
    """The model, computed without vlcore."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        tensors = load_file(checkpoint / "model.safetensors")
        self.projector = tensors["projector.weight"], tensors["projector.bias"]
        text = vlcore.Checkpoint.open(checkpoint).config["text_config"]
        self.model: Any = LlamaForCausalLM(LlamaConfig(**text))
        self.model.train(False)
        prefix = "language_model."
        self.model.load_state_dict(
            {name.removeprefix(prefix): t for name, t in tensors.items() if prefix in name}
        )

    def encode(self, image: Image.Image) -> Any:
        assert image.mode == "RGB"
        size = (16, 8) if image.width >= image.height else (8, 16)
        pixels = torch.tensor(list(image.resize(size).tobytes())).view(size[1], size[0], 3) / 255
        patches = [
            pixels[y : y + 4, x : x + 4].permute(2, 0, 1).flatten()
            for y in range(0, size[1], 4)
            for x in range(0, size[0], 4)
        ]
        weight, bias = self.projector
        return (torch.stack(patches) @ weight.T + bias).numpy()

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        rows = [torch.from_numpy(self.encode(image.convert("RGB"))) for image in IMAGES]
        embed = self.model.get_input_embeddings()
        embeddings = [rows[-1 - i] if i < 0 else embed(torch.tensor([i])) for i in token_ids]
        logits: Tensor = self.model(inputs_embeds=torch.cat(embeddings)[None]).logits[0]
        return logits[-4:]


@pytest.fixture(scope="module")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = Release(checkpoint)
    return record_reference(
        tmp_path_factory.mktemp("reference") / "values.safetensors",
        IMAGES,
        release.encode,
        prompts=PROMPTS,
        logits=release.logits,
        conversations=CONVERSATIONS,
        token_ids=token_ids,
        source="a release, revision 1",
    )


def token_ids(messages: list[dict[str, Any]]) -> list[int]:
    """Return the ids of a conversation, whose images are those that its parts name."""
    if messages[0]["content"] == "Hello":
        return RECORDED_IDS[0]
    first, _, second = messages[0]["content"]
    assert [first["image"].size, second["image"].size] == [(30, 40), (40, 30)]
    return RECORDED_IDS[1]


def compare(checkpoint: Path, reference: Path) -> Report:
    return check_plugin(checkpoint, plugin=NAME, only=CHECKS, reference=reference)


def test_a_plugin_that_computes_the_same_passes(
    site: Site, checkpoint: Path, reference: Path
) -> None:
    install_patchwork(site)
    report = compare(checkpoint, reference)
    assert [result.outcome for result in report.results] == [Outcome.PASSED] * 3, report


def test_what_is_recorded_is_read(reference: Path) -> None:
    read = Reference.read(reference)
    assert [image.mode for image in read.pictures] == ["RGB", "RGB"]
    assert read.pictures[0] == IMAGES[0]
    assert [list(rows.shape) for rows in read.rows] == [[8, 32], [8, 32]]
    assert [list(prompt.token_ids) for prompt in read.prompts] == PROMPTS
    assert [list(prompt.logits.shape) for prompt in read.prompts] == [[4, 700], [3, 700]]
    assert [list(each.token_ids) for each in read.conversations] == RECORDED_IDS
    images = [part.get("image") for part in read.conversations[1].messages[0]["content"]]
    assert images == [read.pictures[1], None, read.pictures[0]]
    assert read.source == "a release, revision 1"


@pytest.mark.parametrize(
    ("edits", "check", "actual"),
    [
        ({"/ 255)": "/ 255.2)"}, "reference-rows", "values that differ by 0.0"),
        ({"(4, 2) if": "(4, 3) if"}, "reference-rows", "a tensor [12, 32]"),
        ({'Control(";")': 'Control(",")'}, "reference-conversations", "40 ids, from there [664,"),
        (
            {
                '    tensors = renamed(checkpoint, {"language_model.": ""})': (
                    '    tensors = renamed(checkpoint, {"language_model.": ""})\n'
                    '    names = [f"model.layers.0.mlp.{n}_proj.weight" for n in ("gate", "up")]\n'
                    "    gate, up = names\n"
                    "    tensors[gate], tensors[up] = tensors[up], tensors[gate]"
                )
            },
            "reference-logits",
            "values that differ by 0.",
        ),
    ],
    ids=["pixels scaled otherwise", "another grid", "another mark", "gate and up exchanged"],
)
def test_a_plugin_that_computes_something_else_is_found(
    site: Site, checkpoint: Path, reference: Path, edits: dict[str, str], check: str, actual: str
) -> None:
    install_patchwork(site, edits)
    report = compare(checkpoint, reference)
    also = ["reference-conversations"] if "(4, 2) if" in edits else []  # it has more embeddings
    assert [result.name for result in report.of(Outcome.FAILED)] == [check, *also]
    failure = report[check].failure
    assert failure is not None
    assert failure.actual.startswith(actual)
    assert "(a release, revision 1)" in failure.expected
    assert f" of {reference}" in failure.where


def test_without_a_file_or_its_parts_there_is_nothing_to_compare(
    site: Site, checkpoint: Path, tmp_path: Path
) -> None:
    install_patchwork(site)
    path = record_reference(tmp_path / "r.safetensors", [], lambda image: image)
    assert {r.outcome for r in compare(checkpoint, path).results} == {Outcome.DOES_NOT_APPLY}
    report = check_plugin(checkpoint, plugin=NAME, only=CHECKS)
    assert {result.reason for result in report.results} == {"no reference file was given"}


def test_tolerances_are_kept_in_the_file(site: Site, checkpoint: Path, tmp_path: Path) -> None:
    install_patchwork(site, {"/ 255)": "/ 255.2)"})
    encode = Release(checkpoint).encode
    path = record_reference(tmp_path / "r.safetensors", IMAGES, encode, rows_tolerance=0.1)
    assert compare(checkpoint, path)["reference-rows"].outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encode": lambda image: [1.0, 2.0]}, r"encode of image 0 must return a matrix .* \[2\]"),
        (
            {"encode": lambda image: [[1, 2]]},
            "must return a matrix of floats; it returned torch.int64",
        ),
        ({"prompts": [[1]]}, "prompts need logits"),
        (
            {"prompts": [[1, -3]], "logits": lambda ids: [[0.0]]},
            "prompt 0 refers to image 2; there are 2",
        ),
        ({"conversations": CONVERSATIONS}, "conversations need token_ids"),
        (
            {
                "conversations": [
                    [{"role": "user", "content": [{"type": "image", "image": 2}]}],
                ],
                "token_ids": token_ids,
            },
            "image 2 of 2",
        ),
        (
            {"conversations": CONVERSATIONS, "token_ids": lambda messages: [1, -2]},
            "token_ids of conversation 0 must return token ids",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    options = {"encode": lambda image: [[0.5]]} | options
    with pytest.raises(OptionError, match=message):
        record_reference(tmp_path / "r.safetensors", IMAGES, **options)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({}, {}, f"expected format='{FORMAT}'"),
        (
            {"format": FORMAT},
            {"picture.0": torch.zeros(2, 2, 3)},
            "is incomplete: expected embeddings",
        ),
        ({"format": FORMAT}, {}, "is incomplete: 'rows_tolerance'"),
        ({"format": FORMAT}, {"rows.1": torch.zeros(1, 1)}, "is incomplete: 'rows.0'"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, metadata: dict[str, str], tensors: dict[str, Tensor], message: str
) -> None:
    path = tmp_path / "r.safetensors"
    save_file(tensors or {"x": torch.zeros(1)}, path, metadata)
    with pytest.raises(OptionError, match=message):
        Reference.read(path)


def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(OptionError, match="cannot be read"):
        Reference.read(path)


def test_a_video_of_a_conversation_is_recorded_as_its_frames(tmp_path: Path) -> None:
    frames = [IMAGES[0], IMAGES[0].rotate(90), IMAGES[0].rotate(180)]
    part = {"type": "video", "video": [2, 0], "fps": 2}
    received = []

    def ids_of(messages: list[dict[str, Any]]) -> list[int]:
        received.append(messages[0]["content"][0])
        return [1, -1]

    path = record_reference(
        tmp_path / "values.safetensors",
        frames,
        lambda _: torch.zeros(1, 2),
        conversations=[[{"role": "user", "content": [part]}]],
        token_ids=ids_of,
    )
    (conversation,) = Reference.read(path).conversations
    for read in (received[0], conversation.messages[0]["content"][0]):
        assert read == {"type": "video", "video": [frames[2], frames[0]], "fps": 2}
    with pytest.raises(OptionError, match="image 3 of 3"):
        record_reference(
            tmp_path / "other.safetensors",
            frames,
            lambda _: torch.zeros(1, 2),
            conversations=[[{"role": "user", "content": [part | {"video": [3]}]}]],
            token_ids=ids_of,
        )

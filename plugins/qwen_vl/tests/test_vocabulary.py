from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden_cases import GOLDEN, read_lines
from qwen_checkpoints import read_vocabulary, write_vocabulary
from transformers import PreTrainedTokenizerFast
from vl_plugin_qwen.vocabulary import CONTROL, IMAGE, NOTATION, load_tokenizer, read_tokens
from waits import cpu_seconds, takes_at_most

import vlcore
from vlcore import (
    CheckpointError,
    CheckpointNotFoundError,
    ImageLayout,
    PromptTokenizer,
    TokenizedPrompt,
)

RELEASED = Path(__file__).parents[4] / "shared" / "golden" / "qwen.tiktoken"
LINES = read_lines(GOLDEN / "prompts" / "qwen_vl_chat.jsonl")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    write_vocabulary(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(path)


def by_rank(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Join the leftmost pair of lowest rank until none is left, as tiktoken does."""
    if word in ranks:
        return [ranks[word]]
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        known = [ranks[pair] for pair in pairs if pair in ranks]
        if not known:
            return [ranks[part] for part in parts]
        first = next(i for i, pair in enumerate(pairs) if ranks.get(pair) == min(known))
        parts[first : first + 2] = [pairs[first]]


def test_words_are_joined_by_rank(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    ranks = {token: rank for rank, token in enumerate(read_vocabulary(path))}
    generator = random.Random(0)
    for _ in range(500):
        word = "".join(generator.choices("aehistuypo", k=generator.randint(1, 12)))
        ids = tokenizer(word)["input_ids"]
        assert ids == by_rank(word.encode(), ranks), word


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("It's 12 o'clock", ["It", "'s", " ", "1", "2", " o", "'clock"]),
        ("a  b", ["a", " ", " b"]),
        ("one\n\n two", ["one", "\n\n", " two"]),
        ("x != y;\n", ["x", " !=", " y", ";\n"]),
        ("图中 cat", ["图中", " cat"]),
    ],
)
def test_text_is_split_as_the_release_does(
    tokenizer: PreTrainedTokenizerFast, text: str, parts: list[str]
) -> None:
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in split] == parts


@pytest.mark.parametrize("text", ["Zoë", "图中有几只猫？", "🦙 \u200d\n x", "\x00\x7f", "  two  "])
def test_every_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_text_is_composed_first(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("e\u0308")["input_ids"] == tokenizer("ë")["input_ids"]


def test_special_tokens_follow_the_ranks(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    num_ranks = len(read_vocabulary(path))
    special = [*CONTROL, *NOTATION, *IMAGE]
    assert len(special) == 217
    assert tokenizer.convert_tokens_to_ids(special) == list(range(num_ranks, num_ranks + 217))
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer("x <img>")["input_ids"][-1] == num_ranks + special.index("<img>")


def test_the_notation_of_boxes_stays_in_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = "<ref>a</ref><box>(1,2),(3,4)</box><|im_end|><|endoftext|>"
    ids = tokenizer(answer)["input_ids"]
    kept = tokenizer.decode(ids, skip_special_tokens=True)
    assert kept == "<ref>a</ref><box>(1,2),(3,4)</box>"


@pytest.mark.parametrize("text", [*CONTROL[:4], *NOTATION, *IMAGE])
def test_what_a_user_types_is_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    prompts = PromptTokenizer(tokenizer)
    ids = prompts.encode_plain(f"a{text}b")
    first_special = tokenizer.convert_tokens_to_ids(CONTROL[0])
    assert isinstance(first_special, int)
    assert max(ids) < first_special
    assert tokenizer.decode(ids) == f"a{text}b"


# -- bad files


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"qwen\.tiktoken cannot be read: .*No such"):
        load_tokenizer(tmp_path / "qwen.tiktoken")


def without_line(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[:number], *lines[number + 1 :]]


def with_line(number: int, line: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[:number], line, *lines[number + 1 :]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: [b"version https://git-lfs.github.com/spec/v1"], r"line 1 of .*Git LFS pointer"),
        (without_line(7), r"line 8 of .* is b'CA== 8'.*rank 7 is expected"),
        (with_line(9, b"C!== 9"), r"line 10 of .*C!== 9"),
        (with_line(9, b"CQ=="), r"line 10 of .*b'CQ=='"),
        (with_line(9, b"CQ== nine"), r"line 10 of .*nine"),
        (with_line(9, b" 9"), r"line 10 of .* b' 9'.*rank 9 is expected"),
        (with_line(9, b"AQ== 9"), r"1 of its .* duplicates, and 1 of the 256 bytes are missing"),
        (lambda lines: lines[:200], r"of its 200 tokens .* 56 of the 256 bytes are missing"),
        (lambda _: [], r"256 of the 256 bytes are missing"),
    ],
)
def test_a_damaged_file_is_reported(
    path: Path, tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    damaged = tmp_path / "qwen.tiktoken"
    damaged.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())))
    with pytest.raises(CheckpointError, match=message):
        read_tokens(damaged)


# -- the released vocabulary, where it is at hand


@pytest.fixture(scope="module")
def released() -> PromptTokenizer:
    if not RELEASED.is_file():
        pytest.skip(f"the released vocabulary is not there: {RELEASED}")
    return PromptTokenizer(load_tokenizer(RELEASED))


def compact(prompt: TokenizedPrompt) -> list[int]:
    """Write -1 for the rows of an image."""
    ids = list(prompt.token_ids)
    for span in reversed(prompt.spans):
        ids[span.start : span.stop] = [-1]
    return ids


def test_loading_costs_no_more_than_the_length(released: PromptTokenizer, tmp_path: Path) -> None:
    lines = RELEASED.read_bytes().splitlines()
    part = tmp_path / "qwen.tiktoken"
    part.write_bytes(b"\n".join(lines[: len(lines) // 8]))
    part_s = cpu_seconds(lambda: load_tokenizer(part))
    limit_s = 32 * part_s + 0.2  # 8 where it is linear, 64 where it is quadratic
    assert takes_at_most(limit_s, lambda: load_tokenizer(RELEASED))


@pytest.mark.parametrize("line", LINES, ids=[line["id"] for line in LINES])
def test_token_ids_are_the_releases(released: PromptTokenizer, line: dict[str, Any]) -> None:
    template = vlcore.load_chat_template(GOLDEN / "qwen_vl")
    parts = template.messages2prompt(line["messages"])
    prompt = released.build(parts, [ImageLayout(256)] * line["n_images"], template)
    assert compact(prompt) == line["ids_compact"]
    assert len(prompt.token_ids) == line["n_tokens"]
    assert [released.special_tokens[text][0] for text in template.stop] == line["stop_token_ids"]

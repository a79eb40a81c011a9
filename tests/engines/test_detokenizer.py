from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vlcore.engines.detokenizer import Detokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def sentencepiece() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        GOLDEN / "tokenization_llava"
    )
    return tokenizer


def byte_level() -> PreTrainedTokenizerBase:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["</s>", *alphabet, "he", "ll", "hell", "Ġhell"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "hell")]
    vocabulary = {word: token_id for token_id, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module", params=[sentencepiece, byte_level])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = request.param()
    return made


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoded


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    text = tokenizer.decode(token_ids)
    assert isinstance(text, str)
    return text


def stream(detokenizer: Detokenizer, token_ids: Iterable[int]) -> list[str]:
    """Return every chunk up to a stop string; the last one is from ``finish``."""
    chunks = []
    for token_id in token_ids:
        chunks.append(detokenizer.add(token_id))
        if detokenizer.stopped:
            return chunks
    return [*chunks, detokenizer.finish()]


TEXTS = [
    "hello there",
    "  two  spaces ",
    "猫？请用中文回答。",
    "a 🙂🙃 b👩‍👩‍👧",
    "é\u0301 \n\t x",
    "hell hell",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_chunks_add_up_to_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    chunks = stream(Detokenizer(tokenizer), ids(tokenizer, text))
    assert "".join(chunks) == tokenizer.decode(ids(tokenizer, text))
    assert "".join(chunks).strip() == text.strip()


@pytest.mark.parametrize("text", TEXTS)
def test_no_chunk_contains_part_of_a_character(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    token_ids = ids(tokenizer, text)
    chunks = stream(Detokenizer(tokenizer), token_ids)
    assert not any("�" in chunk for chunk in chunks)
    emoji = stream(Detokenizer(tokenizer), ids(tokenizer, "a🙂b"))
    assert [chunk for chunk in emoji if chunk] == ["a", "🙂", "b"]


def test_text_is_returned_as_soon_as_it_is_final(tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = Detokenizer(tokenizer)
    shown = ""
    token_ids = ids(tokenizer, "hello there hello")
    for number, token_id in enumerate(token_ids, start=1):
        shown += detokenizer.add(token_id)
        assert shown == tokenizer.decode(token_ids[:number])
    assert detokenizer.finish() == ""


def random_ids(tokenizer: PreTrainedTokenizerBase, draw: random.Random) -> list[int]:
    """Any tokens; bytes of sentencepiece only where they make whole characters.

    Decoding at once turns a whole run of its bytes into U+FFFD where any of them is wrong, also
    bytes long before that one.
    """
    token_ids: list[int] = []
    for _ in range(draw.randint(1, 12)):
        token_id = draw.randrange(len(tokenizer))
        if str(tokenizer.convert_ids_to_tokens(token_id)).startswith("<0x"):
            token_ids += ids(tokenizer, draw.choice(["é", "猫", "🙂", "\n"]))
        else:
            token_ids.append(token_id)
    return token_ids


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("skip", [True, False])
def test_random_tokens_give_the_text_of_decoding_them_at_once(
    tokenizer: PreTrainedTokenizerBase, seed: int, skip: bool
) -> None:
    draw = random.Random(seed)
    for _ in range(40):
        token_ids = random_ids(tokenizer, draw)
        chunks = stream(Detokenizer(tokenizer, skip_special_tokens=skip), token_ids)
        whole = tokenizer.decode(token_ids, skip_special_tokens=skip)
        assert "".join(chunks) == whole, token_ids


def test_special_tokens_are_left_out_or_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert isinstance(end, int)
    token_ids = [*ids(tokenizer, "a"), end, *ids(tokenizer, "b")]
    hidden = "".join(stream(Detokenizer(tokenizer), token_ids))
    shown = "".join(stream(Detokenizer(tokenizer, skip_special_tokens=False), token_ids))
    assert "</s>" not in hidden
    assert "</s>" in shown
    assert shown.replace("</s>", "").replace(" ", "") == hidden.replace(" ", "") == "ab"


def test_an_incomplete_character_is_returned_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = Detokenizer(tokenizer)
    token_ids = ids(tokenizer, "a🙂")
    shown = "".join(map(detokenizer.add, token_ids[:-1]))
    assert shown == "a"
    rest = detokenizer.finish()
    assert rest
    assert set(rest) == {"�"}


# -- work per token


class CountingTokenizer:
    """Passes calls on to a tokenizer, and counts the tokens that are decoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.num_decoded = 0

    def decode(self, token_ids: list[int], **options: Any) -> Any:
        self.num_decoded += len(token_ids)
        return self._tokenizer.decode(token_ids, **options)

    def convert_ids_to_tokens(self, token_id: int) -> Any:
        return self._tokenizer.convert_ids_to_tokens(token_id)


def unfinished_byte(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token of the first byte of an emoji."""
    return next(i for i in ids(tokenizer, "a\U0001f642") if "�" in decode(tokenizer, [i]))


NUM_TOKENS = 2000
MAX_DECODED_PER_TOKEN = 24


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["special token", "unfinished byte", "outside the vocabulary"])
def test_the_work_per_token_does_not_grow_with_the_answer(
    tokenizer: PreTrainedTokenizerBase, kind: str, skip: bool
) -> None:
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert isinstance(end, int)
    repeated = {
        "special token": end,
        "unfinished byte": unfinished_byte(tokenizer),
        "outside the vocabulary": len(tokenizer) + 7,
    }[kind]
    token_ids = [*ids(tokenizer, "hello"), *[repeated] * NUM_TOKENS, *ids(tokenizer, " there")]
    counting = CountingTokenizer(tokenizer)
    detokenizer = Detokenizer(cast("Any", counting), skip_special_tokens=skip)
    text = "".join(stream(detokenizer, token_ids))
    assert text == tokenizer.decode(token_ids, skip_special_tokens=skip)
    assert counting.num_decoded < MAX_DECODED_PER_TOKEN * len(token_ids)


def test_special_tokens_between_the_bytes_of_a_character_do_not_split_it(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert isinstance(end, int)
    token_ids = ids(tokenizer, "a🙂b")
    spread = [token_id for pair in zip(token_ids, [end] * 99, strict=False) for token_id in pair]
    assert "".join(stream(Detokenizer(tokenizer), spread)) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("num_tokens", [3, 8, 40])
def test_tokens_that_all_end_inside_a_character_lose_no_character(num_tokens: int) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    (chunk, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("猫")
    first, rest = chunk[0], chunk[1:]
    words = [*alphabet, rest, rest + first]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]
    middle, last = words.index(rest + first), words.index(rest)
    token_ids = [words.index(first), *[middle] * num_tokens, last]
    chunks = stream(Detokenizer(tokenizer), token_ids)
    assert "".join(chunks) == "猫" * (num_tokens + 1)
    if num_tokens > 8:
        assert sum(map(bool, chunks)) > 1  # the text does not wait for the end of the answer


# -- stop strings


@pytest.mark.parametrize("stop", ["the", " there", "there you", "o t", "u?"])
def test_a_stop_string_over_several_tokens_ends_the_text(
    tokenizer: PreTrainedTokenizerBase, stop: str
) -> None:
    text = "hello there you?"
    detokenizer = Detokenizer(tokenizer, [stop])
    shown = ""
    for chunk in stream(detokenizer, ids(tokenizer, text)):
        shown += chunk
        assert text.partition(stop)[0].startswith(shown)
    assert detokenizer.stopped
    assert shown == text.partition(stop)[0]


def test_the_first_of_several_stop_strings_ends_the_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for stop in (["you", "there"], ["there", "you"], ["here", "there"]):
        chunks = stream(Detokenizer(tokenizer, stop), ids(tokenizer, "hello there you"))
        assert "".join(chunks) == "hello "


def test_an_incomplete_stop_string_is_returned_later(tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = Detokenizer(tokenizer, ["there!"])
    shown = "".join(map(detokenizer.add, ids(tokenizer, "hello there")))
    assert shown == "hello "
    assert not detokenizer.stopped
    assert detokenizer.finish() == "there"
    assert not detokenizer.stopped


def test_a_stop_string_that_overlaps_itself_is_found() -> None:
    tokenizer = byte_level()
    chunks = stream(Detokenizer(tokenizer, ["aab"]), ids(tokenizer, "xaaabc"))
    assert "".join(chunks) == "xa"


def test_text_after_a_stop_string_is_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = Detokenizer(tokenizer, ["there"])
    for token_id in ids(tokenizer, "hello there you hello"):
        shown = detokenizer.add(token_id)
        if detokenizer.stopped:
            assert shown == ""
    assert detokenizer.stopped
    assert detokenizer.finish() == ""


def test_a_stop_string_that_is_completed_at_the_end_is_found(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    detokenizer = Detokenizer(tokenizer, ["�"])
    token_ids = ids(tokenizer, "a🙂")
    assert "".join(map(detokenizer.add, token_ids[:-1])) == "a"
    assert detokenizer.finish() == ""
    assert detokenizer.stopped


# -- banned strings


def test_a_token_that_completes_a_banned_string_is_not_allowed(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    token_ids = ids(tokenizer, "hell hello")
    text = decode(tokenizer, token_ids)
    for start in range(len(text) - 3):
        detokenizer = Detokenizer(tokenizer, bad=[text[start : start + 3], "never"])
        shown = ""
        for token_id in token_ids:
            if not detokenizer.allows(token_id):
                break
            shown += detokenizer.add(token_id)
        else:
            pytest.fail(f"{text[start : start + 3]!r} was allowed")
        assert text[start : start + 3] not in shown
        assert text.startswith(shown)


def test_a_banned_string_next_to_an_incomplete_character_is_found() -> None:
    tokenizer = byte_level()
    token_ids = ids(tokenizer, "he🙂")
    detokenizer = Detokenizer(tokenizer, bad=["he"])
    assert not detokenizer.allows(token_ids[0])
    detokenizer = Detokenizer(tokenizer, bad=["🙂"])
    for token_id in token_ids[:-1]:
        assert detokenizer.allows(token_id)
        detokenizer.add(token_id)
    assert not detokenizer.allows(token_ids[-1])


def test_every_token_is_allowed_without_banned_strings(tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert all(detokenizer.allows(token_id) for token_id in range(20))


def test_allows_does_not_change_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    token_ids = ids(tokenizer, "hello there 🙂")
    asked, plain = Detokenizer(tokenizer, bad=["zz"]), Detokenizer(tokenizer)
    for token_id in token_ids:
        asked.allows(token_ids[0])
        assert asked.add(token_id) == plain.add(token_id)


def test_text_after_a_stop_string_is_not_banned() -> None:
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, stop=["he"], bad=["ll"])
    (token_id,) = ids(tokenizer, "hell")
    assert detokenizer.allows(token_id)
    assert detokenizer.add(token_id) == ""
    assert detokenizer.stopped
    assert not Detokenizer(tokenizer, stop=["l"], bad=["h"]).allows(token_id)

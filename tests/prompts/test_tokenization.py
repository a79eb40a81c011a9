from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from waits import cpu_seconds

from vlcore.errors import PluginContractError, PromptError
from vlcore.prompts.chat_template import ChatTemplate, RoleTemplate
from vlcore.prompts.messages import Control, ImageSlot, PromptPart, Rows, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer, Span

GOLDEN = Path(__file__).parents[1] / "golden"
CONTROL = ("<s>", "</s>", "<|im_end|>", "<image>", "[INST]")
FILLER = PromptTokenizer.filler_id


def sentencepiece(name: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(GOLDEN / name)
    return tokenizer


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a backend, with special tokens and one that only looks like one."""
    special = [AddedToken(text, special=True, normalized=False) for text in CONTROL[:4]]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken("[INST]", special=False, normalized=False)])
    backend.add_tokens([AddedToken("ordinary", special=False, normalized=False)])
    return wrap(backend)


def byte_level(*, merges: Sequence[tuple[str, str]] = (), **options: Any) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*CONTROL, *alphabet]
    words += [left + right for left, right in merges if left + right not in words]
    vocabulary = {word: token_id for token_id, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), **options))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def bpe() -> PreTrainedTokenizerFast:
    return fast(byte_level(merges=[("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]))


def bpe_that_merges_control_text() -> PreTrainedTokenizerFast:
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("</s>", "x"), ("<", "s>"), ("h", "e")]
    return fast(byte_level(merges=merges))


def bpe_that_looks_words_up_first() -> PreTrainedTokenizerFast:
    backend = byte_level(ignore_merges=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return fast(backend)


def unigram() -> PreTrainedTokenizerFast:
    entries = [("<unk>", 0.0), *((text, -1.0) for text in CONTROL)]
    entries += [(character, -3.0) for character in "abcdehilmnorsx ▁<>/|_[]INST"]
    backend = Tokenizer(models.Unigram(entries, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return fast(backend)


def unigram_without_brackets() -> PreTrainedTokenizerFast:
    entries = [("<unk>", 0.0), *((text, -1.0) for text in CONTROL)]
    entries += [(character, -3.0) for character in "abcdehilmnorsx▁"]
    return fast(Tokenizer(models.Unigram(entries, unk_id=0)))


def word_level() -> PreTrainedTokenizerFast:
    words = ["[UNK]", *CONTROL, "hello", "x"]
    vocabulary = {word: token_id for token_id, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast(backend)


def word_piece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", *CONTROL, "hello", "x", *"<>/s|", *(f"##{letter}" for letter in "<>/s|")]
    vocabulary = {word: token_id for token_id, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast(backend)


KINDS = {
    "llava": lambda: sentencepiece("tokenization_llava"),
    "nobos": lambda: sentencepiece("tokenization_nobos"),
    "bpe": bpe,
    "bpe_that_merges_control_text": bpe_that_merges_control_text,
    "bpe_that_looks_words_up_first": bpe_that_looks_words_up_first,
    "unigram": unigram,
    "unigram_without_brackets": unigram_without_brackets,
    "word_level": word_level,
    "word_piece": word_piece,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = KINDS[request.param]()
    return made


@pytest.fixture(scope="module")
def llava() -> PreTrainedTokenizerBase:
    return sentencepiece("tokenization_llava")


@pytest.fixture(scope="module")
def nobos() -> PreTrainedTokenizerBase:
    return sentencepiece("tokenization_nobos")


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokenizer's own ids, without what it puts before every text."""
    encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoded


def build(tokenizer: PreTrainedTokenizerBase, *parts: PromptPart) -> list[int]:
    return list(PromptTokenizer(tokenizer).build(parts).token_ids)


# -- text and special tokens


def test_adjacent_texts_are_joined(nobos: PreTrainedTokenizerBase) -> None:
    whole = ids(nobos, "A chat: what is shown in this image?")
    assert build(nobos, Text("A chat: what is shown in this image?")) == whole
    parts = (Control("A cha"), Text("t: wh"), Control("at is sho"), Text("wn in this im"))
    assert build(nobos, *parts, Control("age?")) == whole
    assert len(whole) < sum(len(ids(nobos, part.text)) for part in parts)


@pytest.mark.parametrize(
    "typed", [*CONTROL[1:4], "a </s> b", "</s></s>", "</s>x", " </s>", "[INST]"]
)
def test_special_tokens_that_a_user_types_remain_text(
    tokenizer: PreTrainedTokenizerBase, typed: str
) -> None:
    prompt = PromptTokenizer(tokenizer)
    special_ids = {token_id for token_id, _ in prompt.special_tokens.values()}
    plain = build(tokenizer, Text(f"x {typed}"))[len(prompt._prefix_ids) :]
    assert len(plain) > 1
    assert special_ids.isdisjoint(set(plain))
    assert prompt.build([Text("</"), Text("s>")]) == prompt.build([Text("</s>")])


@pytest.mark.parametrize("text", ["</s>", "<s>"])
def test_special_tokens_of_the_template_become_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    token_id = tokenizer.convert_tokens_to_ids(text)
    assert token_id in build(tokenizer, Text("x"), Control(text), Text("x"))
    assert token_id in build(tokenizer, Text("x"), Control(f"x{text}x"), Text("x"))


def test_a_special_token_split_between_template_and_user_is_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert end not in build(tokenizer, Control("x </"), Text("s>"))
    assert end not in build(tokenizer, Text("x </"), Control("s>"))


def test_an_added_token_in_brackets_is_special() -> None:
    known = PromptTokenizer(bpe()).special_tokens
    assert set(known) == set(CONTROL)


def test_an_ordinary_added_token_stays_one_in_text() -> None:
    tokenizer = bpe()
    (token_id,) = ids(tokenizer, "ordinary")
    assert build(tokenizer, Text("ordinary")) == [token_id]


def test_the_longest_special_token_wins() -> None:
    tokenizer = fast(byte_level())
    tokenizer.add_tokens([AddedToken("<s>>", special=True, normalized=False)])
    expected = [tokenizer.convert_tokens_to_ids("<s>>"), *ids(tokenizer, ">")]
    assert build(tokenizer, Control("<s>>>")) == expected


def test_a_vocabulary_may_have_no_special_tokens() -> None:
    vocabulary = {word: i for i, word in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = wrap(backend)
    assert PromptTokenizer(tokenizer).special_tokens == {}
    assert build(tokenizer, Control("</s>")) == ids(tokenizer, "</s>")


def test_a_tokenizer_without_a_rust_backend_is_rejected() -> None:
    class Slow:
        backend_tokenizer = None

    with pytest.raises(PromptError, match=r"Rust backend.*Slow has none"):
        PromptTokenizer(Slow())  # type: ignore[arg-type]


def flagged(**flags: bool) -> PreTrainedTokenizerFast:
    backend = byte_level()
    backend.add_tokens([AddedToken("<cut>", special=True, normalized=False, **flags)])
    return wrap(backend)


@pytest.mark.parametrize(
    "flags", [{}, {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}]
)
@pytest.mark.parametrize(
    "texts", [("a", "b"), ("a  ", "  b"), ("a \n", " \n b"), (" ", " "), ("", " b"), ("a ", "")]
)
def test_special_tokens_strip_white_space_according_to_their_flags(
    flags: dict[str, bool], texts: tuple[str, str]
) -> None:
    tokenizer = flagged(**flags)
    expected = ids(tokenizer, f"{texts[0]}<cut>{texts[1]}")
    assert build(tokenizer, Text(texts[0]), Control("<cut>"), Text(texts[1])) == expected
    assert build(tokenizer, Control(f"{texts[0]}<cut>"), *map(Text, texts[1])) == expected


def test_an_image_ends_the_stripping() -> None:
    tokenizer = flagged(rstrip=True)
    prompt = PromptTokenizer(tokenizer).build(
        [Control("<cut>"), ImageSlot(0), Text(" b")], [ImageLayout(1)]
    )
    cut = tokenizer.convert_tokens_to_ids("<cut>")
    assert prompt.token_ids == (cut, FILLER, *ids(tokenizer, " b"))


@pytest.mark.parametrize("text", ["\ud83d", "a\udc80b", "\udfff" * 3])
def test_a_lone_surrogate_is_a_prompt_error(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    for parts in ([Text(text)], [Text("a"), Control("</s>"), Text(text)]):
        with pytest.raises(PromptError, match="is not valid Unicode text"):
            build(tokenizer, *parts)


def test_halves_of_a_surrogate_pair_in_two_parts_are_no_character(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(PromptError, match="is not valid Unicode text"):
        build(tokenizer, Text("\ud83d"), Text("\ude00"))


def test_a_panic_of_the_tokenizer_is_a_prompt_error(capfd: pytest.CaptureFixture[str]) -> None:
    backend = byte_level()
    endless = pre_tokenizers.Split(Regex(r"^(a|aa)+$"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [endless, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    with pytest.raises(PromptError, match=r"failed on a text of 61 characters, 'aaa.*retry-limit"):
        build(wrap(backend), Text("a" * 60 + "b"))
    assert "panicked" in capfd.readouterr().err


@pytest.mark.parametrize("unit", ["a", " ", "猫", "</s><|im_end|>", "\n </"])
def test_a_long_text_costs_no_more_than_its_length(
    tokenizer: PreTrainedTokenizerBase, unit: str
) -> None:
    prompt = PromptTokenizer(tokenizer)
    short, long = ((unit * size)[:size] for size in (10_000, 80_000))
    short_s = cpu_seconds(lambda: prompt.build([Text(short)]))
    long_s = cpu_seconds(lambda: prompt.build([Text(long)]))
    assert long_s < 32 * short_s + 0.2  # 8 where it is linear, 64 where it is quadratic


def test_many_small_texts_cost_no_more_than_one(nobos: PreTrainedTokenizerBase) -> None:
    one, many = [Text("ab" * 50_000)], [Text("ab")] * 50_000
    assert build(nobos, *many) == build(nobos, *one)
    prompt = PromptTokenizer(nobos)
    whole_s = cpu_seconds(lambda: prompt.build(one))
    assert cpu_seconds(lambda: prompt.build(many)) < 10 * whole_s + 0.2


# -- special tokens before every text


def test_bos_occurs_once_at_the_front(llava: PreTrainedTokenizerBase) -> None:
    bos = llava.bos_token_id
    parts = (Text("hello"), ImageSlot(0), Text("there"))
    prompt = PromptTokenizer(llava).build(parts, [ImageLayout(2)])
    assert prompt.token_ids == (bos, *ids(llava, "hello"), FILLER, FILLER, *ids(llava, "there"))
    assert build(llava, Text("hello")) == llava("hello")["input_ids"]


def test_bos_is_not_repeated_where_the_template_writes_it(llava: PreTrainedTokenizerBase) -> None:
    assert build(llava, Control("<s>"), Text("hello")) == llava("hello")["input_ids"]
    assert build(llava, Control("<s>hello")) == llava("hello")["input_ids"]


def test_a_template_may_leave_bos_out(llava: PreTrainedTokenizerBase) -> None:
    class Bare(ChatTemplate):
        adds_prefix = False

    prompt = PromptTokenizer(llava).build([Text("hello")], (), Bare())
    assert prompt.token_ids == tuple(ids(llava, "hello"))
    written = PromptTokenizer(llava).build([Control("<s>"), Text("hello")], (), Bare())
    assert written.token_ids == (llava.bos_token_id, *ids(llava, "hello"))


def test_typed_bos_does_not_replace_bos(llava: PreTrainedTokenizerBase) -> None:
    token_ids = build(llava, Text("<s>"))
    assert token_ids.count(llava.bos_token_id) == 1
    assert token_ids[0] == llava.bos_token_id


def test_a_tokenizer_without_bos_adds_none(nobos: PreTrainedTokenizerBase) -> None:
    assert build(nobos, Text("hello")) == ids(nobos, "hello")
    assert build(nobos) == []


def test_special_tokens_after_every_text_are_left_out() -> None:
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = fast(backend)
    assert build(tokenizer, Text("x")) == [0, *ids(tokenizer, "x")]


def test_empty_parts_give_nothing(llava: PreTrainedTokenizerBase) -> None:
    assert build(llava, Text(""), Control(""), Text("")) == [llava.bos_token_id]
    assert build(llava, Text(""), Text("hello"), Control("")) == llava("hello")["input_ids"]


def metaspace(scheme: Any) -> PreTrainedTokenizerFast:
    entries = [("<unk>", 0.0), *((text, -9.0) for text in CONTROL)]
    entries += [(letter, -3.0) for letter in "abx▁"]
    backend = Tokenizer(models.Unigram(entries, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return fast(backend)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_the_space_before_a_text_follows_the_scheme(scheme: str) -> None:
    tokenizer = metaspace(scheme)
    assert build(tokenizer, Text("a"), Control("</s>"), Text("b")) == ids(tokenizer, "a</s>b")
    assert build(tokenizer, Control("</s>"), Text("b")) == ids(tokenizer, "</s>b")
    space, a, b = (tokenizer.convert_tokens_to_ids(token) for token in "▁ab")
    begun = [] if scheme == "never" else [space]
    prompt = PromptTokenizer(tokenizer).build(
        [Text("a"), ImageSlot(0), Text("b")], [ImageLayout(1)]
    )
    assert prompt.token_ids == (*begun, a, FILLER, *begun, b)


# -- images


def test_images_fill_their_spans(nobos: PreTrainedTokenizerBase) -> None:
    prompt = PromptTokenizer(nobos).build(
        [ImageSlot(1), Text("hello"), ImageSlot(0), ImageSlot(2)],
        [ImageLayout(3), ImageLayout(2), ImageLayout(1)],
    )
    hello = tuple(ids(nobos, "hello"))
    end = 2 + len(hello)
    assert prompt.token_ids == (FILLER, FILLER, *hello, *[FILLER] * 4)
    assert prompt.spans == (
        Span(0, 2, 1, 0),
        Span(end, end + 3, 0, 0),
        Span(end + 3, end + 4, 2, 0),
    )


def test_spans_are_shifted_by_bos(llava: PreTrainedTokenizerBase) -> None:
    prompt = PromptTokenizer(llava).build([ImageSlot(0)], [ImageLayout(2)])
    assert prompt.token_ids == (llava.bos_token_id, FILLER, FILLER)
    assert prompt.spans == (Span(1, 3, 0, 0),)
    written = PromptTokenizer(llava).build([Control("<s>"), ImageSlot(0)], [ImageLayout(2)])
    assert written == prompt


class RowByRow(ChatTemplate):
    """Ends every line of a grid with a special token, and adds text at the end."""

    def expand(self, layout: Any, num_rows: int) -> tuple[Text | Control | Rows, ...]:
        parts: list[Text | Control | Rows] = []
        for _ in range(layout):
            parts += (Rows(num_rows // layout), Control("</s>"))
        return (*parts, Text("hello"))


def test_an_expansion_adds_tokens_between_embeddings(nobos: PreTrainedTokenizerBase) -> None:
    prompt = PromptTokenizer(nobos).build([ImageSlot(0)], [ImageLayout(6, 2)], RowByRow())
    end = nobos.eos_token_id
    rows = [FILLER] * 3
    assert prompt.token_ids == (*rows, end, *rows, end, *ids(nobos, "hello"))
    assert prompt.spans == (Span(0, 3, 0, 0), Span(4, 7, 0, 3))


def test_text_of_an_expansion_is_joined_with_the_text_after_it(
    nobos: PreTrainedTokenizerBase,
) -> None:
    parts: list[PromptPart] = [ImageSlot(0), Text(", you there")]
    prompt = PromptTokenizer(nobos).build(parts, [ImageLayout(1, 1)], RowByRow())
    assert prompt.token_ids == (FILLER, nobos.eos_token_id, *ids(nobos, "hello, you there"))


def test_an_expansion_may_depend_on_the_index_of_the_image(nobos: PreTrainedTokenizerBase) -> None:
    class Numbered(ChatTemplate):
        def expand(
            self, layout: Any, num_rows: int, index: int = 0
        ) -> tuple[Text | Control | Rows, ...]:
            return (Text(str(index)), Rows(num_rows))

    parts: list[PromptPart] = [ImageSlot(1), ImageSlot(0)]
    prompt = PromptTokenizer(nobos).build(parts, [ImageLayout(1), ImageLayout(2)], Numbered())
    second, first = ids(nobos, "1"), ids(nobos, "0")
    assert prompt.token_ids == (*second, FILLER, FILLER, *first, FILLER)


@pytest.mark.parametrize("num_rows", [3, 5])
def test_an_expansion_with_another_number_of_embeddings_is_rejected(
    nobos: PreTrainedTokenizerBase, num_rows: int
) -> None:
    class Wrong(ChatTemplate):
        def expand(self, layout: Any, num_rows: int) -> tuple[Text | Control | Rows, ...]:
            return (Rows(2), Rows(2))

    with pytest.raises(PluginContractError, match=f"image 0, which has {num_rows}"):
        PromptTokenizer(nobos).build([ImageSlot(0)], [ImageLayout(num_rows)], Wrong())


@pytest.mark.parametrize(
    ("slots", "num_images"), [([], 1), ([0], 0), ([0, 0], 2), ([0, 0], 1), ([1], 1), ([0, 2], 2)]
)
def test_slots_and_images_must_correspond(
    nobos: PreTrainedTokenizerBase, slots: list[int], num_images: int
) -> None:
    with pytest.raises(PromptError, match=rf"{len(slots)} image slot\(s\).*{num_images} image"):
        PromptTokenizer(nobos).build(
            [ImageSlot(index) for index in slots], [ImageLayout(1)] * num_images
        )


# -- against the tokenizer itself


WORDS = ["hello", " x", "\n", "  ", "a", "é", "猫", "🙂", "mall", ".", "1", "\t", "in", " one"]


def test_random_parts_give_the_ids_of_their_text(tokenizer: PreTrainedTokenizerBase) -> None:
    draw = random.Random(0)
    prompt = PromptTokenizer(tokenizer)
    for _ in range(60):
        parts = [
            Text(word) if draw.random() < 0.5 else Control(word)
            for word in draw.choices(WORDS, k=draw.randint(1, 8))
        ]
        whole = "".join(part.text for part in parts)
        assert list(prompt.build(parts).token_ids) == tokenizer(whole)["input_ids"], whole


def test_random_parts_with_special_tokens_give_the_ids_of_their_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    draw = random.Random(1)
    prompt = PromptTokenizer(tokenizer)
    known = [text for text in CONTROL[1:] if text in prompt.special_tokens]
    for _ in range(60):
        parts: list[Text | Control] = [
            Control(draw.choice(known)) if draw.random() < 0.4 else Text(draw.choice(WORDS))
            for _ in range(draw.randint(1, 8))
        ]
        whole = "".join(part.text for part in parts)
        assert list(prompt.build(parts).token_ids) == tokenizer(whole)["input_ids"], whole


@pytest.mark.parametrize("name", ["llava", "nobos"])
def test_prompts_of_the_reference_implementation_give_its_ids(name: str) -> None:
    tokenizer = PromptTokenizer(sentencepiece(f"tokenization_{name}"))
    cases = (GOLDEN / f"tokenization_{name}" / "cases.jsonl").read_text().splitlines()
    assert len(cases) > 10
    for case in map(json.loads, cases):
        if "special_text_is_plain" in case["id"]:  # vlcore keeps typed special tokens text
            continue
        chunks = case["prompt"].split("<image>")
        parts: list[PromptPart] = [Control(chunks[0])]
        for index, chunk in enumerate(chunks[1:]):
            parts += (ImageSlot(index), Control(chunk))
        prompt = tokenizer.build(parts, [ImageLayout(1)] * (len(chunks) - 1))
        image_positions = {span.start for span in prompt.spans}
        actual = [-200 if i in image_positions else t for i, t in enumerate(prompt.token_ids)]
        assert actual == case["ids"], case["id"]


@pytest.mark.parametrize("restarts", [True, False])
def test_text_after_an_image_is_tokenized_like_a_beginning_or_a_continuation(
    restarts: bool,
) -> None:
    tokenizer = sentencepiece("tokenization_llava")
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    prompt_tokenizer = PromptTokenizer(wrap(backend))
    template = RoleTemplate("", "", "", restarts_after_image=restarts)
    prompt = prompt_tokenizer.build([ImageSlot(0), Text("this")], [ImageLayout(1)], template)
    ids = list(prompt.token_ids[prompt.spans[0].stop :])
    assert ids == prompt_tokenizer.encode_plain("this", first=restarts)
    assert prompt_tokenizer.encode_plain("this", first=True) != prompt_tokenizer.encode_plain(
        "this", first=False
    )

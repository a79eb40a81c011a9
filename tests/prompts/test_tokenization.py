from __future__ import annotations

from typing import Any

import pytest
from tokenizer_kinds import (
    CONTROL,
    FILLER,
    bpe,
    byte_level,
    fast,
    ids,
    wrap,
)
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from waits import cpu_seconds, takes_at_most

from vlcore.errors import PromptError
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.messages import Control, ImageSlot, PromptPart, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer


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
    limit_s = 32 * short_s + 0.2  # 8 where it is linear, 64 where it is quadratic
    assert takes_at_most(limit_s, lambda: prompt.build([Text(long)]))


def test_many_small_texts_cost_no_more_than_one(nobos: PreTrainedTokenizerBase) -> None:
    one, many = [Text("ab" * 50_000)], [Text("ab")] * 50_000
    assert build(nobos, *many) == build(nobos, *one)
    prompt = PromptTokenizer(nobos)
    whole_s = cpu_seconds(lambda: prompt.build(one))
    assert takes_at_most(10 * whole_s + 0.2, lambda: prompt.build(many))


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

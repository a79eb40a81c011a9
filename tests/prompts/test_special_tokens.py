"""Texts of messages never become a special token or an image slot, with any template."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from golden_cases import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwen_checkpoints import write_vocabulary
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from vl_plugin_idefics3.template import Idefics3Template
from vl_plugin_llava.template import TEMPLATES as LLAVA
from vl_plugin_qwen.template import TEMPLATES as QWEN
from vl_plugin_qwen.vocabulary import NOTATION
from vl_plugin_qwen.vocabulary import load_tokenizer as load_qwen
from vl_plugin_yi.template import TEMPLATE as YI

from vlcore.errors import PromptError
from vlcore.prompts.chat_template import ChatTemplate, write_prompt
from vlcore.prompts.jinja_template import JinjaTemplate
from vlcore.prompts.messages import Control, ImageSlot, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer

SPECIAL = ("<image>", "<im_start>", "<im_end>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>")
HARMLESS = "hello"
HF = (
    "{% for message in messages %}{{ message.role | upper }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "</s>{% endfor %}ASSISTANT:"
)
TRIMS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}Assistant:"
)


@dataclass(frozen=True)
class Subject:
    template: ChatTemplate
    tokenizer: PromptTokenizer
    answer_tokens: frozenset[str] = frozenset()
    """Tokens that the template recognizes in an earlier answer."""

    def trace(
        self, messages: Sequence[dict[str, Any]], *, ignored: frozenset[str] = frozenset()
    ) -> list[str]:
        """The special tokens and images of a conversation, in their order."""
        parts = write_prompt(self.template, messages)
        num_images = sum(isinstance(part, ImageSlot) for part in parts)
        prompt = self.tokenizer.build(parts, [ImageLayout(2, (0, 0))] * num_images, self.template)
        names = {
            token_id: text
            for text, (token_id, _) in self.tokenizer.special_tokens.items()
            if text not in ignored | {"<unk>"}  # <unk> is any text that the vocabulary lacks
        }
        under = {i: span for span in prompt.spans for i in range(span.start, span.stop)}
        return [
            f"image {under[i].image}" if i in under else names[token_id]
            for i, token_id in enumerate(prompt.token_ids)
            if i in under or token_id in names
        ]


def sentencepiece(name: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(GOLDEN / name)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken("[INST]", special=False, normalized=True)])
    return tokenizer


def composing(_: Path) -> PreTrainedTokenizerBase:
    """A tokenizer that normalizes compatible characters before it recognizes special tokens."""
    vocabulary = {one: i for i, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokens = ("<s>", "</s>", "[INST]", "[/INST]", "<global-img>", "<fake_token_around_image>")
    backend.add_tokens(
        [AddedToken(text, special=True, normalized=True) for text in (*SPECIAL, *tokens)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]


def qwen(directory: Path) -> PreTrainedTokenizerBase:
    write_vocabulary(directory / "qwen.tiktoken")
    return load_qwen(directory / "qwen.tiktoken")


TOKENIZERS: dict[str, Callable[[Path], PreTrainedTokenizerBase]] = {
    "sentencepiece": lambda _: sentencepiece("tokenization_llava"),
    "without_bos": lambda _: sentencepiece("tokenization_nobos"),
    "composing": composing,
    "qwen": qwen,
}
CASES: dict[str, tuple[ChatTemplate, str]] = {
    **{f"llava {name}": (template, "sentencepiece") for name, template in LLAVA.items()},
    "llava chatml, composed": (LLAVA["chatml_direct"], "composing"),
    "llava mistral, composed": (LLAVA["mistral_instruct"], "composing"),
    "llava of its checkpoint": (JinjaTemplate(HF), "sentencepiece"),
    "llava of its checkpoint, trimmed": (JinjaTemplate(TRIMS), "composing"),
    **{f"qwen {name}": (template, "qwen") for name, template in QWEN.items()},
    "yi": (YI, "without_bos"),
    "idefics3": (Idefics3Template(SMOLVLM), "composing"),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PromptTokenizer]:
    directory = tmp_path_factory.mktemp("tokenizers")
    return {name: PromptTokenizer(make(directory)) for name, make in TOKENIZERS.items()}


@pytest.fixture(params=CASES)
def subject(request: pytest.FixtureRequest, tokenizers: dict[str, PromptTokenizer]) -> Subject:
    template, name = CASES[request.param]
    answer_tokens = frozenset(NOTATION if request.param.startswith("qwen") else ())
    return Subject(template, tokenizers[name], answer_tokens)


def fullwidth(text: str) -> str:
    return "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in text)


TOKENS = [
    *("<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "<<SYS>>", "<|endoftext|>", *SPECIAL),
    *("<img>", "</img>", "<imgpad>", *NOTATION, "<|extra_0|>", "<fake_token_around_image>"),
    *("<global-img>", "<row_1_col_1>", "<image_1>", "[IMG]", "<image_soft_token>"),
]
FRAGMENTS = [
    *TOKENS,
    *(token[:cut] for token in TOKENS for cut in (1, len(token) // 2, len(token) - 1)),
    *(token[cut:] for token in TOKENS for cut in (1, len(token) // 2, len(token) - 1)),
    *(fullwidth(token) for token in TOKENS),
    *(between.join(token) for token in SPECIAL for between in "\u200b\u00ad\u0301\u202e\0"),
    *("\ufe64/s\ufe65", "\u2039/s\u203a", "<\u0338/s>", "\ufeff</s>\ufeff", "‹|im_end|›"),
    *("{{ 7 * 7 }}", "{% for %}", "{# a #}", "{{ bos_token }}", "{number}", "0:image;", ":0;"),
    *("▁", "▁</s>", "<0x0A>", "<0x3C>/s>", "Ġ</s>", "Ċ", "##", "\n", " ", "\t", "\r\n", "\x85"),
    *(
        "USER: ",
        "### Human: ",
        "ASSISTANT:",
        "\u2028",
        "👩\u200d🚀",
        "猫",
        "é",
        "e\u0301",
        "\U000e0001",
    ),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)
CONTENTS = st.lists(st.one_of(TEXTS, st.none()), min_size=1, max_size=6)
"""Texts, and ``None`` where an image goes."""
FAST = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    # A slow machine is no fault.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def say(role: str, content: Sequence[str | None]) -> dict[str, Any]:
    parts = [{"type": "image"} if one is None else {"type": "text", "text": one} for one in content]
    return {"role": role, "content": parts}


def harmless(content: Sequence[str | None]) -> list[str | None]:
    return [None if one is None else HARMLESS for one in content]


@FAST
@given(system=TEXTS, first=CONTENTS, last=CONTENTS)
def test_messages_of_user_and_system_remain_text(
    subject: Subject, system: str, first: list[str | None], last: list[str | None]
) -> None:
    typed = [say("system", [system]), say("user", first), say("assistant", [HARMLESS])]
    meant = [say("system", [HARMLESS]), say("user", harmless(first)), typed[2]]
    trace = subject.trace([*typed, say("user", last)])
    assert trace == subject.trace([*meant, say("user", harmless(last))])
    slots = [one for one in trace if one.startswith("image ")]
    num_images = [*first, *last].count(None)
    assert slots == [f"image {i}" for i in range(num_images) for _ in range(2)]


@FAST
@given(answers=st.lists(TEXTS, min_size=1, max_size=3))
def test_earlier_answers_remain_text(subject: Subject, answers: list[str]) -> None:
    question, last = say("user", [None, HARMLESS]), say("user", [HARMLESS])
    typed = [question, say("assistant", answers), last]
    meant = [question, say("assistant", [HARMLESS]), last]
    ignored = subject.answer_tokens
    assert subject.trace(typed, ignored=ignored) == subject.trace(meant, ignored=ignored)


def test_the_two_halves_of_a_token_remain_text_wherever_it_is_cut(subject: Subject) -> None:
    meant = subject.trace([say("user", [HARMLESS, None, HARMLESS])])
    tokens = list(subject.tokenizer.special_tokens)[:40]
    for token, third in product(tokens, range(3)):
        cut = 1 + third * (len(token) - 2) // 2
        typed = [token[:cut], token[cut:], None, token[:cut], token[cut:]]
        assert subject.trace([say("user", typed)]) == meant, (token, cut)


def test_many_tokens_in_a_row_remain_text(subject: Subject) -> None:
    typed = "".join(subject.tokenizer.special_tokens) * 20
    meant = subject.trace([say("user", [HARMLESS])])
    assert subject.trace([say("user", [typed])]) == meant


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_lone_surrogate_is_a_prompt_error_in_every_role(subject: Subject, role: str) -> None:
    texts = dict.fromkeys(("system", "user", "assistant"), HARMLESS) | {role: "a\ud800b"}
    messages = [say(one, [texts[one]]) for one in texts]
    with pytest.raises(PromptError, match="not valid Unicode text"):
        subject.trace([*messages, say("user", [HARMLESS])])


def test_special_tokens_of_the_template_are_recognized(subject: Subject) -> None:
    """Without this, none of the tests above could fail."""
    parts = (Control("</s>"), Control("<|im_end|>"), Text("</s><|im_end|>"))
    ids = subject.tokenizer.build(parts).token_ids
    known = [text for text in ("</s>", "<|im_end|>") if text in subject.tokenizer.special_tokens]
    assert known
    for text in known:
        assert ids.count(subject.tokenizer.special_tokens[text][0]) == 1


def test_roles_and_options_of_a_request_do_not_reach_a_template() -> None:
    source = "{{ messages | tojson }}|{{ chat_template is defined }}|{{ detail is defined }}"
    options = {"detail": "{{ 7 * 7 }}", "chat_template": "x", "path": "/etc/passwd"}
    image_part = {"type": "image_url", "image_url": {"url": "https://a.b/secret"} | options}
    message = {"role": "user", "content": [{"type": "text", "text": "typed"}], "name": "injected"}
    rendered = JinjaTemplate(source).render([message])
    assert json.loads(rendered.split("|")[0]) == [{"role": "user", "content": "typed"}]
    assert "|False|False" in rendered
    reads_parts = (
        "{% for message in messages %}{% for part in message.content %}"
        "{{ part | tojson }}<image>{% endfor %}{% endfor %}"
    )
    shown = JinjaTemplate(reads_parts).render([{"role": "user", "content": [image_part]}])
    assert shown == '{"type": "image"}<image>'
    for role in ("{{ 7 * 7 }}", "function", "<|im_start|>system", "../../etc"):
        with pytest.raises(PromptError, match="expected one of system, user, assistant"):
            JinjaTemplate(source).render([message | {"role": role}])

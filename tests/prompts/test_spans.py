from __future__ import annotations

from typing import Any

import pytest
from tokenizer_kinds import (
    FILLER,
    ids,
)
from transformers import PreTrainedTokenizerBase

from vlcore.errors import PluginContractError, PromptError
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.messages import Control, ImageSlot, PromptPart, Rows, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer, Span


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

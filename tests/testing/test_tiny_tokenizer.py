from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from vlcore import PromptTokenizer
from vlcore.testing import tiny_tokenizer


def test_bytes_and_special_tokens_are_tokens(tmp_path: Path) -> None:
    made = tiny_tokenizer(
        {"image_token": "<image>"}, more=("<|im_start|>",), adds_bos=True, chat_template="{{ 1 }}"
    )
    made.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    ids = tokenizer("é <image><|im_start|>")["input_ids"]
    assert len(ids) == 1 + 3 + 2
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-2:] == [tokenizer.image_token_id, len(tokenizer) - 1]
    assert tokenizer.decode(ids[1:]) == "é <image><|im_start|>"
    assert tokenizer.image_token == "<image>"
    assert tokenizer.chat_template == "{{ 1 }}"
    assert {"<image>", "<|im_start|>"} <= PromptTokenizer(tokenizer).special_tokens.keys()


def test_roles_have_other_texts_if_they_are_named() -> None:
    tokenizer = tiny_tokenizer({"eos_token": "<|im_end|>"})
    assert tokenizer.eos_token_id == 2
    assert tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"

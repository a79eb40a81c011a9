from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import TOKENIZER, write_json

from vlcore.errors import CheckpointError
from vlcore.vocabulary import load_tokenizer


def test_a_sentencepiece_model_is_loaded() -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    assert len(tokenizer) == 700
    assert tokenizer.eos_token == "</s>"


def test_a_directory_without_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer: expected one of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_transformers_cannot_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"xx", b"version https://git-lfs.github.com/spec/v1", b""])
def test_a_damaged_vocabulary_is_told(tmp_path: Path, content: bytes) -> None:
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    (tmp_path / "tokenizer_config.json").write_bytes(
        (TOKENIZER / "tokenizer_config.json").read_bytes()
    )
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model .*no sentencepiece model|special"):
        load_tokenizer(tmp_path)

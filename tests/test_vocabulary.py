from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import TOKENIZER, write_json, write_tokenizer
from sentencepiece import SentencePieceProcessor
from transformers import LlamaConfig

from vlcore.errors import CheckpointError
from vlcore.vocabulary import follow_sentencepiece, load_tokenizer


def test_a_sentencepiece_model_is_loaded() -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    assert len(tokenizer) == 700
    assert tokenizer.eos_token == "</s>"


def test_a_directory_without_a_tokenizer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer: expected one of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_transformers_cannot_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"xx", b"version https://git-lfs.github.com/spec/v1", b""])
def test_a_damaged_vocabulary_is_reported(tmp_path: Path, content: bytes) -> None:
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    (tmp_path / "tokenizer_config.json").write_bytes(
        (TOKENIZER / "tokenizer_config.json").read_bytes()
    )
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model .*not a sentencepiece|special"):
        load_tokenizer(tmp_path)


# -- as sentencepiece does it


@pytest.mark.parametrize("has_dummy_prefix", [True, False])
def test_text_is_split_as_sentencepiece_splits_it(tmp_path: Path, has_dummy_prefix: bool) -> None:
    directory = write_tokenizer(tmp_path, has_dummy_prefix=has_dummy_prefix)
    tokenizer = load_tokenizer(directory, LlamaConfig())
    processor = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    texts = ["hello there", " hello", "   a  b ", "\nWhat?\n### Assistant:", "图中有几只猫？", "▁x"]
    expected = [processor.encode(text) for text in texts]
    assert [tokenizer(text)["input_ids"] for text in texts] != expected
    follow_sentencepiece(tokenizer, directory)
    assert [tokenizer(text)["input_ids"] for text in texts] == expected


def test_without_a_sentencepiece_model_there_is_a_dummy_prefix(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    follow_sentencepiece(tokenizer, tmp_path)
    assert tokenizer.tokenize(" a")[0] == "▁"


def test_another_pre_tokenizer_is_unchanged(tmp_path: Path) -> None:
    directory = write_tokenizer(tmp_path, has_dummy_prefix=False, legacy=False)
    tokenizer = load_tokenizer(directory, LlamaConfig())
    before = tokenizer.backend_tokenizer.to_str()
    follow_sentencepiece(tokenizer, directory)
    assert tokenizer.backend_tokenizer.to_str() == before

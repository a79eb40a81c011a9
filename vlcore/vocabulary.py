"""Loads tokenizers, with errors for files from which transformers would load an empty one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlcore.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["follow_sentencepiece"]

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_tokenizer(
    directory: Path, config: PretrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory, without remote code.

    Args:
        directory: the directory of the tokenizer's files.
        config: determines the tokenizer's class instead of ``config.json``, if the tokenizer's
            own files do not.

    Raises:
        CheckpointError: the vocabulary is missing, damaged or empty, or the tokenizer cannot be
            read.
    """
    from transformers import AutoTokenizer

    _check_vocabulary(directory)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, config=config, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer in {directory} could not be loaded: {type(error).__name__}: {error}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise CheckpointError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens, all of them special: is "
            f"its vocabulary file ({', '.join(_VOCABULARY_FILES)}) complete?"
        )
    return tokenizer


def _check_vocabulary(directory: Path) -> None:
    """Raise for a missing or damaged vocabulary, which transformers would read as an empty one."""
    if not any((directory / file).is_file() for file in _VOCABULARY_FILES):
        raise CheckpointError(
            f"{directory} has no tokenizer: expected one of {', '.join(_VOCABULARY_FILES)}"
        )
    path = directory / "tokenizer.model"
    if not path.is_file() or (directory / "tokenizer.json").is_file():
        return
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a sentencepiece model: {error}. The "
            "download may be incomplete, or a Git LFS pointer"
        ) from error


def follow_sentencepiece(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Make a tokenizer split text as sentencepiece itself does with ``tokenizer.model``.

    Sentencepiece adds a dummy prefix to every text if the model asks for one. The Metaspace step
    that transformers builds omits it before a text that begins with a space, and adds it even if
    the model does not ask for it.

    Args:
        tokenizer: the tokenizer, changed in place; it is unchanged if transformers built another
            pre-tokenizer.
        directory: the directory of ``tokenizer.model``; without that file, a dummy prefix is
            assumed.
    """
    from tokenizers import normalizers, pre_tokenizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    step = getattr(backend, "pre_tokenizer", None)
    if (
        backend is None
        or backend.normalizer is not None
        or not isinstance(step, pre_tokenizers.Metaspace)
        or step.prepend_scheme != "always"
    ):
        return
    mark = step.replacement
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", mark)]
    if _has_dummy_prefix(directory / "tokenizer.model"):
        steps.insert(0, normalizers.Prepend(mark))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = None


def _has_dummy_prefix(path: Path) -> bool:
    from sentencepiece import SentencePieceProcessor

    return not path.is_file() or SentencePieceProcessor(model_file=str(path)).normalize("x") != "x"

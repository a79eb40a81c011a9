"""A tokenizer of a few hundred tokens, for tiny checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROLES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def tiny_tokenizer(
    tokens: Mapping[str, str] | None = None,
    *,
    more: tuple[str, ...] = (),
    adds_bos: bool = False,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are single bytes, and some special tokens.

    The ids 0 to 3 are those of the padding, BOS, EOS and unknown token: ``<pad>``, ``<s>``,
    ``</s>`` and ``<unk>``, unless ``tokens`` names others. The bytes follow, then the other special
    tokens in their order.

    Args:
        tokens: the texts of special tokens by their names, such as ``image_token``, which a
            processor of transformers reads from the tokenizer's attributes.
        more: texts of special tokens without a name.
        adds_bos: whether the tokenizer puts BOS before every text.
        chat_template: the Jinja source of the chat template.

    Returns:
        The tokenizer; its ``save_pretrained`` writes it into a checkpoint.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    named = {**_ROLES, **(tokens or {})}
    first = [named[role] for role in _ROLES]
    vocabulary = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    model = models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token=first[-1])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = dict.fromkeys([*first, *named.values(), *more])
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    if adds_bos:
        bos = named["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, 1)]
        )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        **{role: named[role] for role in _ROLES},
        extra_special_tokens={name: text for name, text in named.items() if name not in _ROLES},
    )
    tokenizer.chat_template = chat_template
    return tokenizer

"""A tokenizer of bytes that knows the special tokens of every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_FIRST = ("<pad>", "<s>", "</s>", "<unk>")
_SPECIAL = """
<image> </image> <video> <img> </img> <imgpad> <IMG_CONTEXT> <image_placeholder> <begin_of_image>
<|image_pad|> <|video_pad|> <|vision_start|> <|vision_end|> <|vision_pad|> <|IMAGE_PAD|>
<|VIDEO_PAD|> <|VISION_START|> <|VISION_END|> <|image|> <|video|> <|audio|> <|image> <image|>
<|audio> <audio|> <|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|>
<|IMAGE_PLACEHOLDER|> <|IMAGE_START|> <|IMAGE_END|> <|VIDEO_PLACEHOLDER|> <|VIDEO_START|>
<|VIDEO_END|> <|hy_place|> <|hy_start|> <|hy_end|> <|START_OF_IMG|> <|END_OF_IMG|> <|IMG_PATCH|>
<|IMG_LINE_BREAK|> <TILE> <TILE_GLOBAL> <image_soft_token> <start_of_image> <end_of_image>
<audio_soft_token> <start_of_audio> <end_of_audio> <fake_token_around_image> <global-img>
<end_of_utterance> [IMG] [IMG_BREAK] [IMG_END] <|img|> <|image_start|> <|image_end|>
<|img_thumbnail|> <IMG_START> <IMG_END> <IMG_GRID> <IMG_COL> <IMG_ROW> <IMG_ATOM> <|patch|>
<|tile_x_separator|> <|tile_y_separator|> <|media_pad|> <|kimi_k25_video_placeholder|> <im_patch>
<im_start> <im_end> <patch_start> <patch_end> <patch_newline> <im_col> <im_low>
<low_res_im_start> <frame_start> <frame_end> <slice> </slice> <image_id> </image_id>
<|extra_200|> <|extra_201|> <|vid_start|> <|vid_end|> <|vid_frame_separator|> <|video_duration|>
]<]image[>[ ]<]video[>[ ]<]vision_start[>[ ]<]vision_end[>[ <|im_start|> <|im_end|>
""".split()
_SPACED = ("<|image start|>", "<|image end|>", "<|image token|>")
_GRID = [(row, column) for row in range(1, 4) for column in range(1, 4)]


def special_tokens() -> list[str]:
    """Return the special tokens, in the order of their ids."""
    return [
        *_FIRST,
        *_SPECIAL,
        *_SPACED,
        *(f"<row_{row}_col_{column}>" for row, column in _GRID),
        *(f"<|img_row_{row}_col_{column}|>" for row, column in _GRID),
        *(f"<|visual token {number:06d}|>" for number in range(16)),
    ]


def build_tokenizer(tokens: Mapping[str, Any], *, has_bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token of a byte is the byte, with named special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_FIRST, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens()]
    )
    if has_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=dict(tokens),
    )

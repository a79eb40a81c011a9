"""A tiny random InternVL, saved by transformers itself."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoints import write_json
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)

EDGE = 56
_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ '<IMG_CONTEXT>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_internvl(directory: Path) -> Path:
    """Write a checkpoint with everything that a released one has."""
    special = ["<|im_start|>", "<|im_end|>", *_TOKENS.values()]
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        extra_special_tokens=_TOKENS,
    ).save_pretrained(directory)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = InternVLConfig(
        vision_config=sizes
        | {"intermediate_size": 96, "image_size": [EDGE, EDGE], "patch_size": [14, 14]},
        text_config=sizes
        | {
            "model_type": "qwen2",
            "intermediate_size": 96,
            "num_key_value_heads": 2,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 4096,
            "eos_token_id": vocabulary.index("<|im_end|>"),
        },
        image_token_id=vocabulary.index("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(_TEMPLATE)
    write_json(
        directory / "processor_config.json",
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
    )
    write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "size": {"height": EDGE, "width": EDGE},
            "crop_to_patches": True,
            "max_patches": 4,
        },
    )
    return directory

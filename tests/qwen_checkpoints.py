"""Tiny random checkpoints in the layout of Qwen-VL, complete with a vocabulary of their own."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from checkpoints import write_json
from golden_cases import GOLDEN
from safetensors.torch import save_file
from vl_plugin_qwen.vocabulary import CONTROL, IMAGE, NOTATION

NUM_ROWS = 256
POINTING = "<ref>dog</ref><box>(100,200),(700,800)</box>"
"""What a checkpoint of :func:`write_pointing_qwen` answers to everything."""
_WORDS = ("user", "system", "assistant", "Picture", "helpful", "You", "What", "is", "this")
_WHOLE_TOKENS = (b"dog", b"(100,200),(700,800)")


def write_qwen(directory: Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a tiny Qwen-VL-Chat checkpoint for images of 28 pixels, with 256 embeddings each."""
    directory.mkdir(parents=True, exist_ok=True)
    tokens = write_vocabulary(directory / "qwen.tiktoken")
    special = (*CONTROL, *NOTATION, *IMAGE)
    values = json.loads((GOLDEN / "qwen_vl" / "config.json").read_text())
    values["visual"] |= {
        "image_size": 28,
        "layers": 1,
        "image_start_id": len(tokens) + special.index("<img>"),
    }
    values |= {"vocab_size": len(tokens) + len(special) + 6, "num_hidden_layers": 1} | config
    write_json(directory / "config.json", values)
    save_file(qwen_tensors(values, seed), directory / "model.safetensors")
    return directory


def write_pointing_qwen(directory: Path) -> Path:
    """Write a checkpoint whose every answer is :data:`POINTING`."""
    write_qwen(directory)
    config = json.loads((directory / "config.json").read_text())
    tensors = qwen_tensors(config, seed=0)
    for name in ("attn.c_proj.weight", "mlp.c_proj.weight"):  # each token depends on itself alone
        tensors[f"transformer.h.0.{name}"].zero_()
    tensors["transformer.ln_f.weight"].fill_(1)
    embeddings, head = tensors["transformer.wte.weight"].zero_(), tensors["lm_head.weight"].zero_()
    known = {token: i for i, token in enumerate(read_vocabulary(directory / "qwen.tiktoken"))}
    known |= {text.encode(): len(known) + i for i, text in enumerate((*CONTROL, *NOTATION, *IMAGE))}
    answer = ("\n", "<ref>", "dog", "</ref>", "<box>", "(100,200),(700,800)", "</box>")
    chain = [known[text.encode()] for text in (*answer, "<|im_end|>")]
    for dimension, (token, following) in enumerate(pairwise(chain)):
        embeddings[token, dimension] = head[following, dimension] = 1
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_vocabulary(path: Path, *, num_merges: int = 60) -> list[bytes]:
    """Write a small ``.tiktoken`` file: all bytes, the commonest pairs of a text, whole tokens."""
    tokens = [bytes([byte]) for byte in range(256)]
    words = [[bytes([byte]) for byte in word.encode()] for word in _WORDS]
    for _ in range(num_merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        (left, right), _ = counts.most_common(1)[0]
        tokens.append(left + right)
        words = [_merge(word, left, right) for word in words]
    tokens += _WHOLE_TOKENS
    path.write_bytes(
        b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens))
    )
    return tokens


def read_vocabulary(path: Path) -> list[bytes]:
    return [base64.b64decode(line.split()[0]) for line in path.read_bytes().splitlines()]


def _merge(word: Sequence[bytes], left: bytes, right: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for token in word:
        if merged and (merged[-1], token) == (left, right):
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def qwen_tensors(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Draw the tensors of a checkpoint, the vision encoder among them."""
    generator = torch.Generator().manual_seed(seed)
    width, inner = config["hidden_size"], config["intermediate_size"] // 2
    heads = config["num_attention_heads"] * config["kv_channels"]
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (config["vocab_size"], width),
        "transformer.wte.weight": (config["vocab_size"], width),
        "transformer.ln_f.weight": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"transformer.h.{layer}."
        shapes |= {
            f"{prefix}attn.c_attn.weight": (3 * heads, width),
            f"{prefix}attn.c_attn.bias": (3 * heads,),
            f"{prefix}attn.c_proj.weight": (width, heads),
            f"{prefix}mlp.w1.weight": (inner, width),
            f"{prefix}mlp.w2.weight": (inner, width),
            f"{prefix}mlp.c_proj.weight": (width, inner),
            f"{prefix}ln_1.weight": (width,),
            f"{prefix}ln_2.weight": (width,),
        }
    root = "transformer.visual."
    shapes |= {root + name: shape for name, shape in _visual_shapes(config["visual"]).items()}

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        return 1 + noise / 10 if ".ln_" in name and name.endswith("weight") else noise / 8

    return {name: draw(name, shape) for name, shape in shapes.items()}


def _visual_shapes(visual: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, rows, patch = visual["width"], visual["output_dim"], visual["patch_size"]
    inner = int(width * visual["mlp_ratio"])
    linear: dict[str, tuple[int, int]] = {"attn_pool.attn.out_proj": (rows, rows)}
    norms = {"ln_pre": width, "ln_post": rows, "attn_pool.ln_q": rows, "attn_pool.ln_kv": rows}
    for layer in range(visual["layers"]):
        prefix = f"transformer.resblocks.{layer}."
        linear |= {
            f"{prefix}attn.in_proj": (3 * width, width),
            f"{prefix}attn.out_proj": (width, width),
            f"{prefix}mlp.c_fc": (inner, width),
            f"{prefix}mlp.c_proj": (width, inner),
        }
        norms |= {f"{prefix}ln_1": width, f"{prefix}ln_2": width}
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 3, patch, patch),
        "positional_embedding": (NUM_ROWS, width),
        "proj": (rows, rows),
        "attn_pool.pos_embed": (NUM_ROWS, rows),
        "attn_pool.query": (NUM_ROWS, rows),
        "attn_pool.attn.in_proj_weight": (3 * rows, rows),
        "attn_pool.attn.in_proj_bias": (3 * rows,),
    }
    if width != rows:
        shapes["attn_pool.kv_proj.weight"] = (rows, width)
    for name, size in linear.items():
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    for name, length in norms.items():
        shapes |= {f"{name}.weight": (length,), f"{name}.bias": (length,)}
    return shapes

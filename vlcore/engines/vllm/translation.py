"""Translates a request's options and its prompt into those of vLLM.

Options that vLLM would interpret differently are refused here, or implemented by vlcore instead.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlcore.engines.external.continuation import Continuation
from vlcore.engines.external.option_limits import (
    HINT,
    check_max_values,
    check_num_end_tokens,
)
from vlcore.engines.external.prompt import HostPrompt
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.grammar import Grammar
from vlcore.engines.transformers.grammars.translation import translate
from vlcore.errors import OptionError

MAX_VALUES = {"temperature": 2.0}
"""The largest values that vLLM accepts."""
MAX_BIASED_IDS = 1024
MAX_END_IDS = 128
"""The limits of vLLM's second model runner."""
_MIN_TEMPERATURE = 0.01
"""vLLM would raise lower temperatures to this value; greedy decoding is closer to them."""


def check_options(
    config: GenerationConfig, end_token_ids: Collection[int], *, has_second_runner: bool
) -> None:
    """Check that vLLM can apply a request's options as vlcore defines them.

    Args:
        config: the request's options.
        end_token_ids: tokens that end its answers.
        has_second_runner: whether vLLM runs its second model runner, which has limits of its own.

    Raises:
        OptionError: an option is out of vLLM's range, or not supported by it.
    """
    if config.output_logits is not None:
        raise OptionError(
            f"vLLM does not return logits; output_logits is {config.output_logits!r}: request "
            f"logprobs instead, {HINT}"
        )
    check_max_values(config, MAX_VALUES, "vLLM")
    if config.bad_words and config.grammar is not None:
        raise OptionError(
            "with vLLM, bad_words cannot be combined with a grammar, because an answer that is "
            f"continued without a banned string would begin the grammar again: remove one, {HINT}"
        )
    if config.bad_words and (config.frequency_penalty or config.presence_penalty):
        raise OptionError(
            "with vLLM, bad_words cannot be combined with frequency_penalty or presence_penalty, "
            "because an answer that is continued without a banned string would count only its "
            f"later tokens: remove one of them, {HINT}"
        )
    if not has_second_runner:
        return
    num_biased = len({*config.bad_token_ids, *config.logit_bias})
    if num_biased > MAX_BIASED_IDS:
        raise OptionError(
            f"bad_token_ids and logit_bias must have at most {MAX_BIASED_IDS} tokens together with "
            f"vLLM; they have {num_biased}: use fewer, {HINT}"
        )
    check_num_end_tokens(config, end_token_ids, MAX_END_IDS, "vLLM")


def to_vllm(continuation: Continuation) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's ``SamplingParams`` for one answer.

    Stop strings, ``n`` and detokenization are not translated, because vlcore implements them.
    """
    config = continuation.config
    banned_token_ids = {*config.bad_token_ids, *continuation.banned_token_ids}
    banned = dict.fromkeys(banned_token_ids, float("-inf"))
    bias = {token_id: float(value) for token_id, value in config.logit_bias.items()} | banned
    options: dict[str, Any] = {
        "max_tokens": continuation.max_new_tokens,
        "temperature": 0.0,
        "repetition_penalty": float(config.repetition_penalty),
        "frequency_penalty": float(config.frequency_penalty),
        "presence_penalty": float(config.presence_penalty),
        "logit_bias": bias or None,
        "stop_token_ids": sorted(continuation.end_token_ids),
        "ignore_eos": True,  # the model's end tokens are among the stop tokens
        "min_tokens": min(continuation.min_new_tokens, continuation.max_new_tokens),
        "logprobs": config.logprobs,
        "detokenize": False,
    }
    if not config.is_greedy and config.temperature >= _MIN_TEMPERATURE:
        options |= continuation.sampling_options | {"seed": continuation.choose_seed(63)}
    return options


def to_structured(grammar: Grammar) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's ``StructuredOutputsParams`` for a grammar.

    Args:
        grammar: a grammar that the embedded engine's compiler has accepted.
    """
    text = translate(grammar.kind, grammar.source)
    if grammar.kind != "json_schema":
        return {"grammar": text}
    # vLLM takes the schema itself, with llguidance's settings in it.
    (translated,) = json.loads(text)["grammars"]
    return {"json": translated["json_schema"]}


@dataclass(frozen=True)
class VllmPrompt:
    """A prompt as vLLM receives it.

    Shapes:
        embeddings: [tokens, hidden_size] on the host, or ``None`` for a prompt of text alone.
    """

    token_ids: list[int]
    embeddings: Tensor | None = None
    is_token: list[bool] | None = None
    """For each position, whether it holds a token rather than an image embedding."""


def to_vllm_prompt(prompt: HostPrompt, generated: Sequence[int] = ()) -> VllmPrompt:
    """Translate a prompt that is followed by a part of its answer.

    The positions of tokens hold NaN instead of an embedding. vLLM's prefix cache identifies a block
    by its token ids and the bytes of its embeddings, in which a token then differs from every image
    embedding.

    Args:
        prompt: the prompt on the host.
        generated: the tokens of the answer so far.
    """
    token_ids = [*prompt.token_ids, *generated]
    if not prompt.embeddings:
        return VllmPrompt(token_ids)
    first = prompt.embeddings[0]
    embeddings = torch.full((len(token_ids), first.shape[1]), torch.nan, dtype=first.dtype)
    is_token = [True] * len(token_ids)
    for rows, (begin, end) in zip(prompt.embeddings, prompt.ranges, strict=True):
        embeddings[begin:end] = rows
        is_token[begin:end] = [False] * (end - begin)
    return VllmPrompt(token_ids, embeddings, is_token)

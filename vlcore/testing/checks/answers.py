"""Checks of whole responses: that there is one, and that it stops."""

from __future__ import annotations

import re

import torch

from vlcore.engines.base import EngineOutput, EngineRequest
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.transformers.sequence import TransformersSequence
from vlcore.errors import EngineUnavailableError, VlcoreError
from vlcore.inference.factory import pipeline
from vlcore.prompts.chat_template import write_prompt
from vlcore.prompts.conversation import read_conversation
from vlcore.prompts.tokenization import TokenizedPrompt
from vlcore.testing.check import check
from vlcore.testing.report import DoesNotApplyError, NotRunError, fail
from vlcore.testing.samples import sample_image
from vlcore.testing.subject import Subject

_CONTROL = re.compile(r"<\|?[\w/ .-]+\|?>|\[/?[A-Z_]+\]")
_NUM_NEW_TOKENS = 3
_ANSWER = "It is a boat."


@check("stop-words", "each stop string of the template and each end token ends a response")
def stop_words(subject: Subject) -> None:
    """Play each stop to the engine's own rule, within an answer."""
    where = f"stop of {type(subject.template).__name__}"
    stop: object = subject.template.stop
    if not isinstance(stop, tuple) or not all(isinstance(one, str) and one for one in stop):
        fail(
            expected="a tuple of texts, none of them empty",
            actual=repr(stop),
            where=where,
            advice='write ("###",) with a comma: a plain string is a sequence of letters',
        )
    stop_conditions = StopConditions.from_model(subject.language_model, subject.tokenizer)
    if not stop and not stop_conditions.eos_token_ids:
        fail(
            expected="at least one stop string, or an end token",
            actual="neither: every response would continue to its limit",
            where=f"{where}; eos_token_id of the configuration and the tokenizer",
            advice="name what ends an answer in stop",
        )
    num_embeddings = int(subject.language_model.transformers_config.vocab_size)
    for text in stop:
        token_id = stop_conditions.special_token_ids.get(text)
        if token_id is None and _CONTROL.fullmatch(text):
            fail(
                expected=f"the stop {text!r} as a token of the tokenizer",
                actual="no added token of this name",
                where=where,
                advice="look for a misspelling in stop, or for a tokenizer file that is missing",
            )
        if token_id is not None and token_id >= num_embeddings:
            fail(
                expected=f"a token among the {num_embeddings} that the model can give",
                actual=f"token {token_id} for {text!r}",
                where=where,
                advice="the tokenizer and the model's vocabulary do not belong together",
            )
        ids = subject.prompt_tokenizer.encode_plain(text) if token_id is None else [token_id]
        _expect_end(subject, stop_conditions, ids, f"{where}, {text!r}")
    for token_id in stop_conditions.eos_token_ids:
        _expect_end(subject, stop_conditions, [token_id], f"end token {token_id}")
    _expect_end_after_answer(subject, stop_conditions)


def _expect_end_after_answer(subject: Subject, stop_conditions: StopConditions) -> None:
    """Check that the token which the template writes after an answer ends a response."""
    history = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": _ANSWER},
    ]
    try:
        begun, whole = (
            subject.prompt_tokenizer.build(
                write_prompt(subject.template, read_conversation(messages)), [], subject.template
            ).token_ids
            for messages in (history, [*history, {"role": "user", "content": "Why?"}])
        )
    except VlcoreError:  # not supported, or wrong, which other checks report
        return
    after = whole[len(begun)] if whole[: len(begun)] == begun else None
    names = {i: text for text, i in stop_conditions.special_token_ids.items()}
    if after not in names or after in stop_conditions.eos_token_ids:
        return
    if names[after] not in subject.template.stop:
        fail(
            expected=f"a stop or an end token: {names[after]!r}, which is written after an answer",
            actual=f"stop {subject.template.stop!r}, end tokens "
            f"{sorted(map(names.get, stop_conditions.eos_token_ids), key=str)}",
            where=f"stop of {type(subject.template).__name__}, and end_token_ids of the language "
            "model",
            advice="name what ends an answer in stop, or in generation_config.json",
        )


def _expect_end(
    subject: Subject, stop_conditions: StopConditions, stop_ids: list[int], where: str
) -> None:
    """Feed a response token by token, as an engine does: text, the stop, and more text."""
    before, after = (subject.prompt_tokenizer.encode_plain(text) for text in ("Yes, it is.", "No."))
    chunks: list[EngineOutput] = []

    def collect(chunk: EngineOutput | VlcoreError) -> None:
        if isinstance(chunk, VlcoreError):
            raise chunk
        chunks.append(chunk)

    sequence = TransformersSequence(
        EngineRequest(TokenizedPrompt((0,)), stop=tuple(subject.template.stop)),
        0,
        stop_conditions=stop_conditions,
        tokenizer=subject.tokenizer,
        max_length=4096,
        vocab_size=int(subject.language_model.transformers_config.vocab_size),
        device=torch.device("cpu"),
        emit=collect,
    )
    for token_id in (*before, *stop_ids, *after):
        if not sequence.is_finished:
            sequence.accept(token_id, torch.empty(0))
    text = "".join(chunk.text for chunk in chunks)
    if not sequence.is_finished or chunks[-1].finish_reason != "stop" or "No." in text:
        fail(
            expected="a response that ends at the stop",
            actual=f"{text!r}, which continues after it",
            where=where,
            advice="check how the tokenizer splits and decodes the stop string (vlcore explain)",
        )


@check("answers", "a question about an image gets a response, through the whole pipeline")
def answers(subject: Subject) -> None:
    """Generate a few tokens."""
    reason = subject.plugin.mismatch(subject.checkpoint.config, subject.checkpoint.files)
    if reason is not None:
        raise NotRunError(f"vl_match returns {reason!r}: see match-own")
    subject.need("vision_model", "template", "prompt_tokenizer", "text_model")
    options = {"max_new_tokens": _NUM_NEW_TOKENS, "ignore_eos": True}
    try:
        with pipeline(
            subject.checkpoint.directory,
            plugin=subject.name,
            device=str(subject.device),
            dtype=subject.dtype,
        ) as pipe:
            response = pipe(("What is this?", sample_image((64, 48))), options)
    except EngineUnavailableError as error:
        raise DoesNotApplyError(f"no engine here runs it: {error}") from error
    if response.generate_token_len != _NUM_NEW_TOKENS:
        fail(
            expected=f"{_NUM_NEW_TOKENS} tokens",
            actual=f"{response.generate_token_len}, {response.text!r}",
            where="vlcore.pipeline",
            advice="send the same prompt with vlcore chat, and inspect it with vlcore explain",
        )

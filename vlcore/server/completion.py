"""From the pipeline's pieces to the answers of OpenAI's chat API, whole and in chunks."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vlcore.inference.pipeline import Pipeline
from vlcore.inference.response import Response, join_responses
from vlcore.server.metrics import Metrics
from vlcore.server.request_parsing import ParsedRequest

logger = logging.getLogger(__name__)

_GRID = 10_000
"""Regions are read on a picture of this width and height, and given as fractions of it."""
_LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""


@dataclass
class Completion:
    """The answer to one request in the making.

    Args:
        pipeline: gives it.
        question: what is asked.
        model_name: what the client calls the model.
        metrics: counts tokens and times.
    """

    pipeline: Pipeline
    question: ParsedRequest
    model_name: str
    metrics: Metrics
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _has_warned: bool = False

    async def whole(self) -> dict[str, Any]:
        """Give the whole answer."""
        async with aclosing(self._pieces()) as pieces:
            answer = join_responses([piece async for piece in pieces])
        choices = []
        for response in answer.choices:
            choice: dict[str, Any] = {
                "index": response.choice,
                "message": {"role": "assistant", "content": response.text, "refusal": None},
                "finish_reason": response.finish_reason,
                "logprobs": self._logprobs(response),
            }
            choices.append(choice | self._regions(response.text))
        num_generated = sum(response.generate_token_len for response in answer.choices)
        return self._body("chat.completion", choices) | {"usage": _usage(answer, num_generated)}

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Give the answer as server-sent events."""
        texts: dict[int, list[str]] = {}
        num_generated: dict[int, int] = {}
        piece = None
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                event = b""
                if piece.choice not in texts:
                    texts[piece.choice] = []
                    event = self._chunk(piece.choice, {"role": "assistant", "content": ""})
                texts[piece.choice].append(piece.text)
                num_generated[piece.choice] = piece.generate_token_len
                if piece.text or piece.logprobs:
                    delta = {"content": piece.text}
                    event += self._chunk(piece.choice, delta, logprobs=self._logprobs(piece))
                if piece.finish_reason is not None:
                    regions = self._regions("".join(texts[piece.choice]))
                    event += self._chunk(piece.choice, {}, piece.finish_reason, **regions)
                if event:
                    yield event
        if self.question.wants_usage and piece is not None:
            usage = _usage(piece, sum(num_generated.values()))
            yield _event(self._body("chat.completion.chunk", []) | {"usage": usage})
        yield b"data: [DONE]\n\n"

    async def _pieces(self) -> AsyncGenerator[Response]:
        """Iterate over the pipeline's pieces, and measure."""
        started = time.perf_counter()
        answered = self.pipeline.astream_infer(self.question.messages, self.question.config)
        num_generated: dict[int, int] = {}
        piece = None
        try:
            async with aclosing(answered) as pieces:
                async for piece in pieces:
                    if not num_generated:
                        self.metrics.time_to_first_token.observe(time.perf_counter() - started)
                    num_generated[piece.choice] = piece.generate_token_len
                    yield piece
        finally:
            if piece is not None:
                self.metrics.count_tokens(
                    piece.input_token_len, piece.image_token_len, sum(num_generated.values())
                )

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, str],
        finish_reason: str | None = None,
        *,
        logprobs: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "finish_reason": finish_reason,
            "logprobs": logprobs,
        }
        return _event(self._body("chat.completion.chunk", [choice | more]))

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        body = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model_name,
            "choices": choices,
        }
        if self.question.warnings and not self._has_warned:  # in a stream, once
            self._has_warned = True
            body["warnings"] = list(self.question.warnings)
        return body

    def _regions(self, text: str) -> dict[str, Any]:
        template = self.pipeline.template
        if not (self.question.has_images and template.finds_regions):
            return {}
        try:
            found = template.regions(text, (_GRID, _GRID))
        except Exception:  # of a plugin; the answer itself is good
            logger.exception("%s.regions failed", type(template).__name__)
            return {}
        regions = [
            {"label": region.label, "box": [edge / _GRID for edge in region.box]}
            for region in found
        ]
        return {"regions": regions} if regions else {}

    def _logprobs(self, response: Response) -> dict[str, Any] | None:
        num_top = self.question.num_top_logprobs
        if num_top is None:
            return None
        content = []
        for token_id, values in zip(response.token_ids, response.logprobs, strict=True):
            likeliest = sorted(values.items(), key=lambda item: -item[1])[:num_top]
            chosen = self._logprob(token_id, values[token_id])
            content.append(chosen | {"top_logprobs": [self._logprob(*item) for item in likeliest]})
        return {"content": content}

    def _logprob(self, token_id: int, logprob: float) -> dict[str, Any]:
        token = self.pipeline.token_text(token_id)
        return {
            "token": token,
            "logprob": max(logprob, _LEAST_LOGPROB),
            "bytes": None if "\ufffd" in token else list(token.encode()),
        }


def error_event(body: Mapping[str, Any]) -> bytes:
    """Tell in the midst of a stream that no more will come."""
    return _event(body)


def _event(body: Mapping[str, Any]) -> bytes:
    return (
        b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )


def _usage(response: Response, num_generated: int) -> dict[str, Any]:
    return {
        "prompt_tokens": response.input_token_len,
        "completion_tokens": num_generated,
        "total_tokens": response.input_token_len + num_generated,
        "prompt_tokens_details": {"image_tokens": response.image_token_len, "cached_tokens": 0},
    }

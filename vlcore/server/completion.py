"""Converts the pipeline's responses to OpenAI's chat completions, whole and as a stream."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vlcore.inference.response import Response
from vlcore.server.metrics import Metrics, TokenRecorder
from vlcore.server.request_parsing import ParsedRequest
from vlcore.server.served_model import ServedModel
from vlcore.server.tools import CompletionCalls

logger = logging.getLogger(__name__)

_REGION_GRID = 10_000
"""Width and height of the image in which regions are read, before they become fractions."""
_MIN_LOGPROB = -9999.0
"""Replaces minus infinity, which JSON does not have."""


@dataclass
class Completion:
    """The completion of one request.

    Args:
        pipeline: Generates the completion.
        request: The request.
        model_name: The name of the model in the response.
        metrics: Counts tokens and measures the time to the first one.
    """

    pipeline: ServedModel
    request: ParsedRequest
    model_name: str
    metrics: Metrics
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _has_warned: bool = False

    async def create(self) -> bytes:
        """Generate the whole completion and return it as JSON.

        Log-probabilities are many times larger than the text. They are converted to JSON as they
        arrive, so that the event loop does not wait for all of them at the end.
        """
        choices: dict[int, _Choice] = {}
        delta = None
        with TokenRecorder(self.metrics) as recorder:
            async with aclosing(self._responses()) as responses:
                async for delta in responses:
                    recorder.record(delta)
                    choice = choices.setdefault(delta.choice, _Choice(self._calls()))
                    choice.add(delta)
                    if self.request.num_top_logprobs is not None:
                        choice.logprobs += map(_json, self._logprobs(delta))
        if delta is None:
            raise RuntimeError("the pipeline generated nothing")
        usage = _usage(delta, recorder.num_completion_tokens)
        items = [self._choice(index, choices[index]) for index in sorted(choices)]
        body = _json(self._body("chat.completion", []) | {"usage": usage})
        return body.replace('"choices":[]', f'"choices":[{",".join(items)}]', 1).encode()

    def _choice(self, index: int, choice: _Choice) -> str:
        text = "".join(choice.text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.tool_calls:
            calls = [
                {key: value for key, value in call.items() if key != "index"}
                for call in choice.tool_calls
            ]
            message |= {"content": text or None, "tool_calls": calls}
        item = {"index": index, "message": message, "finish_reason": choice.finish_reason}
        logprobs = "null"
        if self.request.num_top_logprobs is not None:
            logprobs = f'{{"content":[{",".join(choice.logprobs)}]}}'
        return f'{{"logprobs":{logprobs},{_json(item | self._regions(text))[1:]}'

    async def stream(self) -> AsyncGenerator[bytes]:
        """Generate the completion and yield it as server-sent events."""
        choices: dict[int, _Choice] = {}
        delta = None
        with TokenRecorder(self.metrics) as recorder:
            async with aclosing(self._responses()) as responses:
                async for delta in responses:
                    recorder.record(delta)
                    event = b""
                    if delta.choice not in choices:
                        choices[delta.choice] = _Choice(self._calls())
                        event = self._chunk(delta.choice, {"role": "assistant", "content": ""})
                    choice = choices[delta.choice]
                    text, calls = choice.add(delta)
                    if text or delta.logprobs:
                        logprobs = None
                        if self.request.num_top_logprobs is not None:
                            logprobs = {"content": self._logprobs(delta)}
                        event += self._chunk(delta.choice, {"content": text}, logprobs=logprobs)
                    if calls:
                        event += self._chunk(delta.choice, {"tool_calls": calls})
                    if choice.finish_reason is not None:
                        regions = self._regions("".join(choice.text))
                        event += self._chunk(delta.choice, {}, choice.finish_reason, **regions)
                    if event:
                        yield event
        if self.request.include_usage and delta is not None:
            usage = _usage(delta, recorder.num_completion_tokens)
            yield _event(self._body("chat.completion.chunk", []) | {"usage": usage})
        yield b"data: [DONE]\n\n"

    def _calls(self) -> CompletionCalls | None:
        tool_use = self.request.tool_use
        return None if tool_use is None else CompletionCalls(tool_use.make_reader())

    def _responses(self) -> AsyncGenerator[Response]:
        return self.pipeline.astream_infer(self.request.conversation, self.request.config)

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        finish_reason: str | None = None,
        *,
        logprobs: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "finish_reason": finish_reason,
            "logprobs": logprobs,
        }
        return _event(self._body("chat.completion.chunk", [choice | extra]))

    def _body(self, object_type: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        body = {
            "id": self.id,
            "object": object_type,
            "created": self.created,
            "model": self.model_name,
            "choices": choices,
        }
        if self.request.warnings and not self._has_warned:  # in a stream: the first chunk alone
            self._has_warned = True
            body["warnings"] = list(self.request.warnings)
        return body

    def _regions(self, text: str) -> dict[str, Any]:
        template = self.pipeline.template
        if not (self.request.conversation.images and template.finds_regions):
            return {}
        try:
            found = template.regions(text, (_REGION_GRID, _REGION_GRID))
        except Exception:  # a plugin's fault; the completion itself is valid
            logger.exception("%s.regions failed", type(template).__name__)
            return {}
        regions = [
            {"label": region.label, "box": [edge / _REGION_GRID for edge in region.box]}
            for region in found
        ]
        return {"regions": regions} if regions else {}

    def _logprobs(self, response: Response) -> Sequence[Mapping[str, Any]]:
        num_top = self.request.num_top_logprobs
        content = []
        for token_id, logprobs in zip(response.token_ids, response.logprobs, strict=True):
            top = sorted(logprobs.items(), key=lambda item: -item[1])[:num_top]
            sampled = self._logprob(token_id, logprobs[token_id])
            content.append(sampled | {"top_logprobs": [self._logprob(*item) for item in top]})
        return content

    def _logprob(self, token_id: int, logprob: float) -> dict[str, Any]:
        token = self.pipeline.token_text(token_id)
        return {
            "token": token,
            "logprob": max(logprob, _MIN_LOGPROB),
            "bytes": None if "\ufffd" in token else list(token.encode()),
        }


def error_event(body: Mapping[str, Any]) -> bytes:
    """Return the event that ends a stream with an error."""
    return _event(body)


@dataclass
class _Choice:
    """What has been generated of one choice."""

    calls: CompletionCalls | None
    """Reads the calls of tools, if the completion may have some."""
    text: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[str] = field(default_factory=list)
    """The log-probabilities of each token, as JSON."""
    finish_reason: str | None = None

    def add(self, response: Response) -> tuple[str, list[dict[str, Any]]]:
        """Add a chunk of the response, and return the text and the calls that it adds."""
        text = response.text
        tool_calls: list[dict[str, Any]] = []
        if self.calls is not None:
            text, tool_calls = self.calls.feed(response.text)
            if response.finish_reason is not None:
                last_text, last_calls = self.calls.finish()
                text, tool_calls = text + last_text, tool_calls + last_calls
        self.text.append(text)
        self.tool_calls += tool_calls
        self.finish_reason = response.finish_reason
        if self.tool_calls and response.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return text, tool_calls


def _event(body: Mapping[str, Any]) -> bytes:
    return f"data: {_json(body)}\n\n".encode()


def _json(value: Any) -> str:
    """Return a value as JSON, without characters at which some clients split lines."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "\u0085\u2028\u2029":
        if character in text:
            text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _usage(response: Response, num_generated: int) -> dict[str, Any]:
    return {
        "prompt_tokens": response.input_token_len,
        "completion_tokens": num_generated,
        "total_tokens": response.input_token_len + num_generated,
        "prompt_tokens_details": {
            "image_tokens": response.image_token_len,
            "video_tokens": response.video_token_len,
            "cached_tokens": response.cached_tokens,
        },
    }

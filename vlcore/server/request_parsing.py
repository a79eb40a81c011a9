"""From a chat request to what the pipeline is asked: messages, and how to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vlcore.engines.generation import GenerationConfig
from vlcore.server.errors import ApiError
from vlcore.server.schema import ChatMessage, ChatRequest, ImagePart, Part, TextPart
from vlcore.server.settings import ServerSettings

_ECHOED = frozenset({"annotations", "regions"})
"""Fields of an answer that clients send back with it."""

_LEAST_TEMPERATURE = 1e-5
"""Below it the likeliest token is as good as certain, and the smallest numbers overflow."""


@dataclass(frozen=True)
class ParsedRequest:
    """What the pipeline is asked, and what the client wants to know beside the answer."""

    messages: list[dict[str, Any]]
    config: GenerationConfig
    streams: bool
    wants_usage: bool
    """At the end of a stream."""
    num_top_logprobs: int | None
    warnings: tuple[str, ...]
    has_images: bool


def parse_request(
    body: bytes, settings: ServerSettings, image_options: frozenset[str], context_length: int
) -> ParsedRequest:
    """Read the body of a request.

    Args:
        body: JSON.
        settings: the server's limits.
        image_options: what may be asked of a picture.
        context_length: the most tokens an answer can have.

    Raises:
        ApiError: it is no request that this server answers.
        OptionError: options of the answer contradict each other.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from error
    if request.model != settings.model_name:
        raise ApiError(
            404,
            "model_not_found",
            f"the model {request.model[:200]!r} is not served here; this one is: "
            f"{settings.model_name!r}",
            "model",
        )
    warnings: list[str] = []
    messages = [
        {"role": _role(message), "content": _content(message, image_options, warnings)}
        for message in _checked(request.messages)
    ]
    has_images = any(
        isinstance(part, ImagePart)
        for message in request.messages
        if not isinstance(message.content, str)
        for part in message.content
    )
    wants_logprobs = bool(request.logprobs)
    if request.top_logprobs is not None and not wants_logprobs:
        raise ApiError(400, "invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "invalid_value", "stream_options needs stream: true", "stream_options")
    return ParsedRequest(
        messages,
        _config(request, settings, context_length),
        bool(request.stream),
        bool(request.stream_options and request.stream_options.include_usage),
        (request.top_logprobs or 0) if wants_logprobs else None,
        tuple(dict.fromkeys(warnings)),
        has_images,
    )


def _checked(messages: list[ChatMessage]) -> list[ChatMessage]:
    for position, message in enumerate(messages):
        odd = [
            key
            for key, value in (message.model_extra or {}).items()
            if value is not None and key not in _ECHOED
        ]
        if odd:
            raise ApiError(
                400,
                "unknown_parameter",
                f"message {position} holds {odd[0][:100]!r}, which is not supported",
                f"messages.{position}.{odd[0][:100]}",
            )
    return messages


def _role(message: ChatMessage) -> str:
    return "system" if message.role == "developer" else message.role


def _content(
    message: ChatMessage, image_options: frozenset[str], warnings: list[str]
) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    return [_part(part, image_options, warnings) for part in message.content]


def _part(part: Part, image_options: frozenset[str], warnings: list[str]) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    options: dict[str, Any] = dict(part.image_url.model_extra or {})
    if part.image_url.detail not in (None, "auto"):
        if "detail" in image_options:
            options["detail"] = part.image_url.detail
        else:
            warnings.append("detail has no effect: this model sees every picture in one way")
    return {"type": "image_url", "image_url": {**options, "url": part.image_url.url}}


def _config(
    request: ChatRequest, settings: ServerSettings, context_length: int
) -> GenerationConfig:
    num_answers = request.n or 1
    if num_answers > settings.max_answers:
        raise ApiError(
            400,
            "invalid_value",
            f"n is {num_answers}; this server gives at most {settings.max_answers} (max_answers)",
            "n",
        )
    temperature = 1.0 if request.temperature is None else request.temperature
    is_greedy = temperature < _LEAST_TEMPERATURE
    if is_greedy and num_answers > 1:
        raise ApiError(
            400, "invalid_value", "with temperature 0 all answers are the same: n must be 1", "n"
        )
    asked = request.max_completion_tokens or request.max_tokens or settings.default_max_tokens
    options: dict[str, Any] = {"max_new_tokens": min(asked, context_length), "n": num_answers}
    if not is_greedy:
        options |= {"do_sample": True, "temperature": temperature, "top_k": request.top_k or 0}
    if request.seed is not None:
        options["random_seed"] = request.seed % 2**64
    if request.logprobs:
        options["logprobs"] = request.top_logprobs or 0
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    options["stop_words"] = tuple(stop)
    for name in ("top_p", "min_p", "repetition_penalty", "ignore_eos"):
        if (value := getattr(request, name)) is not None:
            options[name] = value
    return GenerationConfig(**options)


def _explain(error: ValidationError) -> ApiError:
    """Tell of the first fault; values are not repeated, for they can be long."""
    first: Mapping[str, Any] = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {first['ctx']['error']}")
    place = ".".join(str(step)[:100] for step in _keys(first["loc"]))
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    if first["type"] == "missing":
        code = "missing_parameter"
    return ApiError(400, code, f"{place}: {first['msg']}", place or None)


def _keys(steps: tuple[int | str, ...]) -> list[int | str]:
    """Leave the keys of the request, without the names of the alternatives that were tried."""
    keys = list(steps)
    if keys[0:1] == ["stop"]:
        del keys[1:2]
    elif keys[0:1] == ["messages"] and keys[2:3] == ["content"]:
        del keys[5:6], keys[3:4]
    return keys

"""Parses a chat request into a conversation and a generation config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vlcore.engines.generation import GenerationConfig
from vlcore.inference.user_input import parse_prompt
from vlcore.prompts.messages import Conversation
from vlcore.server.errors import ApiError
from vlcore.server.schema import ChatMessage, ChatRequest, Part, TextPart
from vlcore.server.settings import ServerSettings

_ECHOED_FIELDS = frozenset({"annotations", "regions"})
"""Fields of a completion's message that clients send back with it."""

_MIN_TEMPERATURE = 1e-5
"""Below it decoding is greedy: the most likely token is practically certain, and small temperatures
overflow."""


@dataclass(frozen=True)
class ParsedRequest:
    """The arguments of the pipeline, and the options of the response."""

    conversation: Conversation
    config: GenerationConfig
    stream: bool
    include_usage: bool
    """Whether a stream ends with the token counts."""
    num_top_logprobs: int | None
    """Alternatives per token; ``None`` if no log-probabilities are requested."""
    warnings: tuple[str, ...]


def parse_request(
    body: bytes, settings: ServerSettings, image_options: frozenset[str], context_length: int
) -> ParsedRequest:
    """Parse and validate the body of a request.

    Args:
        body: The body, as JSON.
        settings: The server's limits.
        image_options: Options of an image that the model supports.
        context_length: The engine's context length, in tokens.

    Raises:
        ApiError: The request is invalid or not supported.
        OptionError: The generation options contradict each other.
        PromptError: The messages are invalid.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _as_api_error(error) from error
    if request.model != settings.model_name:
        raise ApiError(
            404,
            "model_not_found",
            f"the model {request.model[:200]!r} is not served here; the served one is "
            f"{settings.model_name!r}",
            "model",
        )
    warnings: list[str] = []
    messages = [
        {"role": _role(message), "content": _content(message, image_options, warnings)}
        for message in _check_fields(request.messages)
    ]
    wants_logprobs = bool(request.logprobs)
    if request.top_logprobs is not None and not wants_logprobs:
        raise ApiError(400, "invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "invalid_value", "stream_options needs stream: true", "stream_options")
    return ParsedRequest(
        parse_prompt(messages),
        _config(request, settings, context_length),
        bool(request.stream),
        bool(request.stream_options and request.stream_options.include_usage),
        (request.top_logprobs or 0) if wants_logprobs else None,
        tuple(dict.fromkeys(warnings)),
    )


def _check_fields(messages: list[ChatMessage]) -> list[ChatMessage]:
    for position, message in enumerate(messages):
        unknown = [
            key
            for key, value in (message.model_extra or {}).items()
            if value is not None and key not in _ECHOED_FIELDS
        ]
        if unknown:
            raise ApiError(
                400,
                "unknown_parameter",
                f"message {position} holds {unknown[0][:100]!r}, which is not supported",
                f"messages.{position}.{unknown[0][:100]}",
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
            warnings.append("detail has no effect: this model encodes every image in the same way")
    return {"type": "image_url", "image_url": {**options, "url": part.image_url.url}}


def _config(
    request: ChatRequest, settings: ServerSettings, context_length: int
) -> GenerationConfig:
    num_completions = request.n or 1
    if num_completions > settings.max_answers:
        raise ApiError(
            400,
            "invalid_value",
            f"n is {num_completions}; the maximum is {settings.max_answers} (max_answers)",
            "n",
        )
    temperature = 1.0 if request.temperature is None else request.temperature
    is_greedy = temperature < _MIN_TEMPERATURE
    if is_greedy and num_completions > 1:
        raise ApiError(
            400,
            "invalid_value",
            "with temperature 0 all completions are the same: n must be 1",
            "n",
        )
    max_tokens = request.max_completion_tokens or request.max_tokens or settings.default_max_tokens
    options: dict[str, Any] = {
        "max_new_tokens": min(max_tokens, context_length),
        "n": num_completions,
    }
    if not is_greedy:
        options |= {"do_sample": True, "temperature": temperature, "top_k": request.top_k or 0}
    if request.seed is not None:
        options["random_seed"] = request.seed % 2**64
    if request.logprobs:
        options["logprobs"] = request.top_logprobs or 0
    stop_strings = [request.stop] if isinstance(request.stop, str) else request.stop or []
    options["stop_words"] = tuple(stop_strings)
    for name in ("top_p", "min_p", "repetition_penalty", "ignore_eos"):
        if (value := getattr(request, name)) is not None:
            options[name] = value
    return GenerationConfig(**options)


def _as_api_error(error: ValidationError) -> ApiError:
    """Describe the first fault; values are not repeated, because they can be long."""
    first: Mapping[str, Any] = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {first['ctx']['error']}")
    param = ".".join(str(step)[:100] for step in _field_path(first["loc"]))
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    if first["type"] == "missing":
        code = "missing_parameter"
    return ApiError(400, code, f"{param}: {first['msg']}", param or None)


def _field_path(location: tuple[int | str, ...]) -> list[int | str]:
    """Drop the names of union members from the location of a validation error."""
    keys = list(location)
    if keys[0:1] == ["stop"]:
        del keys[1:2]
    elif keys[0:1] == ["messages"] and keys[2:3] == ["content"]:
        del keys[5:6], keys[3:4]
    return keys

"""Parses a chat request into a conversation and a generation config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from vlcore.engines.generation import GenerationConfig
from vlcore.engines.grammar import Grammar
from vlcore.inference.user_input import parse_prompt
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.conversation import Conversation
from vlcore.server.body import JsonBody
from vlcore.server.errors import ApiError, release_frames
from vlcore.server.grammar_parsing import parse_grammar
from vlcore.server.schema.messages import (
    ChatMessage,
    ImagePart,
    ImageUrl,
    Part,
    RefusalPart,
    TextPart,
    ToolCallItem,
    VideoPart,
)
from vlcore.server.schema.request import ChatRequest
from vlcore.server.settings import ServerSettings
from vlcore.server.tools import ToolUse, parse_tools

_OPENAI_DEFAULTS: Mapping[str, Any] = {"temperature": 1.0, "top_k": 0}
"""The defaults of OpenAI's API where they differ from those of ``GenerationConfig``."""
_SAMPLING_OPTIONS = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("frequency_penalty", "presence_penalty"),
)
_MAX_REPORTED = 8
"""Maximum number of unknown fields that a warning names."""


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
    grammar_field: str | None = None
    """The field that states the grammar of the completion, if there is one."""
    tool_use: ToolUse | None = None
    """How the completion may or must call tools, if it may."""


def parse_request(
    body: bytes,
    settings: ServerSettings,
    image_options: frozenset[str],
    context_length: int,
    template: ChatTemplate | None = None,
) -> ParsedRequest:
    """Parse and validate the body of a request.

    Args:
        body: The body, as JSON.
        settings: The server's limits.
        image_options: Options of an image that the model supports.
        context_length: The engine's context length, in tokens.
        template: The model's chat template, which may support tools.

    Raises:
        ApiError: The request is invalid or not supported.
        OptionError: The generation options contradict each other.
        PromptError: The messages are invalid.
    """
    json_body = JsonBody(body, settings.max_text_bytes)
    request = _validate(json_body.text)
    if request.model != settings.model_name:
        raise ApiError(
            404,
            "model_not_found",
            f"the model {request.model[:200]!r} is not served here; the served one is "
            f"{settings.model_name!r}",
            "model",
        )
    warnings: list[str] = []
    if unknown := list(_unknown_fields(request)):
        _report_unknown(unknown, settings, warnings)
    parser = _MessageParser(image_options, json_body, warnings)
    messages = [parser.parse(message, index) for index, message in enumerate(request.messages)]
    wants_logprobs = bool(request.logprobs)
    if request.top_logprobs and not wants_logprobs:
        raise _invalid("top_logprobs", "it requires logprobs: true")
    if (
        request.stream_options is not None
        and request.stream_options.has_effect
        and not request.stream
    ):
        raise _invalid("stream_options", "it requires stream: true")
    tool_use = parse_tools(request, template)
    call_grammar = None if tool_use is None else tool_use.make_grammar
    grammar_field, grammar = parse_grammar(request, call_grammar) or (None, None)
    config = _config(request, settings, context_length, grammar)
    conversation = parse_prompt(messages)
    if tool_use is not None:
        conversation = replace(conversation, tools=tool_use.tools)
        # The marks of calls can be special tokens.
        config = replace(config, skip_special_tokens=False)
    return ParsedRequest(
        conversation,
        config,
        bool(request.stream),
        bool(request.stream_options and request.stream_options.include_usage),
        (request.top_logprobs or 0) if wants_logprobs else None,
        tuple(dict.fromkeys(warnings)),
        grammar_field,
        tool_use,
    )


def _validate(text: bytes) -> ChatRequest:
    try:
        return ChatRequest.model_validate_json(text)
    except ValidationError as error:
        api_error = _as_api_error(error)
        release_frames(error)
    raise api_error


def _unknown_fields(request: ChatRequest) -> Iterator[str]:
    """Yield the paths of all fields that are not part of the API."""
    yield from request.unknown_fields
    for index, message in enumerate(request.messages):
        for name in message.unknown_fields:
            yield f"messages.{index}.{name}"
        if isinstance(message.content, list):
            for position, part in enumerate(message.content):
                for name in part.unknown_fields:
                    yield f"messages.{index}.content.{position}.{name}"
    if request.stream_options is not None:
        for name in request.stream_options.unknown_fields:
            yield f"stream_options.{name}"


def _report_unknown(unknown: list[str], settings: ServerSettings, warnings: list[str]) -> None:
    if settings.strict:
        name = unknown[0][:100]
        raise ApiError(400, "unknown_parameter", f"{name}: the field is not supported", name)
    names = ", ".join(repr(name[:100]) for name in unknown[:_MAX_REPORTED])
    more = f" and {len(unknown) - _MAX_REPORTED} others" if len(unknown) > _MAX_REPORTED else ""
    warnings.append(f"unknown fields are ignored: {names}{more}")


class _MessageParser:
    """Converts messages of the API to those of the pipeline.

    Args:
        image_options: Options of an image that the model supports.
        body: Has the data URLs of the request.
        warnings: Receives warnings about options without effect.
    """

    def __init__(self, image_options: frozenset[str], body: JsonBody, warnings: list[str]) -> None:
        self._image_options = image_options
        self._body = body
        self._warnings = warnings

    def parse(self, message: ChatMessage, index: int) -> dict[str, Any]:
        """Return a message of the pipeline."""
        role = "system" if message.role == "developer" else message.role
        content = message.content
        if content is None:
            if role != "assistant":
                raise ApiError(
                    400,
                    "missing_parameter",
                    f"messages.{index}.content: Field required",
                    f"messages.{index}.content",
                )
            content = ""
        parsed: dict[str, Any] = {"role": role}
        if isinstance(content, str):
            parsed["content"] = self._body.restore(content)
        else:
            parsed["content"] = [self._part(part) for part in content]
        if message.tool_calls:
            # Not dumped as a whole: fields that are not part of the API would be, too.
            parsed["tool_calls"] = [
                {"id": call.id, "type": call.type, "function": _called_function(call)}
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            parsed["tool_call_id"] = message.tool_call_id
        return parsed

    def _part(self, part: Part) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": self._body.restore(part.text)}
        if isinstance(part, RefusalPart):
            return {"type": "text", "text": self._body.restore(part.refusal)}
        if isinstance(part, VideoPart):
            return {"type": "video_url", "video_url": self._video_url(part)}
        return {"type": "image_url", "image_url": self._image_url(part)}

    def _video_url(self, part: VideoPart) -> dict[str, Any]:
        if isinstance(part.video_url, str):
            return {"url": self._body.restore(part.video_url)}
        options = part.video_url.model_extra or {}
        return {**options, "url": self._body.restore(part.video_url.url)}

    def _image_url(self, part: ImagePart) -> dict[str, Any]:
        image = part.image_url
        if isinstance(image, str):
            image = ImageUrl.model_construct(url=image)
        options = {
            name: value for name, value in (image.model_extra or {}).items() if value is not None
        }
        detail = image.detail if "detail" in image.model_fields_set else part.detail
        if detail not in (None, "auto"):
            if "detail" in self._image_options:
                options["detail"] = detail
            else:
                self._warnings.append(
                    "detail has no effect: this model encodes every image in the same way"
                )
        return {**options, "url": self._body.restore(image.url)}


def _called_function(call: ToolCallItem) -> dict[str, str]:
    return {"name": call.function.name, "arguments": call.function.arguments}


def _continue_final_message(request: ChatRequest) -> bool | None:
    """Return the option of the generation config; ``None`` for its default."""
    is_possible = request.messages[-1].role == "assistant"
    option, prompt = request.continue_final_message, request.add_generation_prompt
    if option and not is_possible:
        raise _invalid("continue_final_message", "the last message must be one of the assistant")
    if is_possible and option is None and prompt is not None:
        option = not prompt
    if prompt is not None and prompt == (is_possible and option is not False):
        raise _invalid(
            "add_generation_prompt",
            "it must be false if the last message is continued, and true otherwise",
        )
    return option if is_possible else None


def _config(
    request: ChatRequest,
    settings: ServerSettings,
    context_length: int,
    grammar: Grammar | None,
) -> GenerationConfig:
    num_completions = request.n or 1
    if num_completions > settings.max_answers:
        raise _invalid(
            "n", f"it is {num_completions}; the maximum is {settings.max_answers} (max_answers)"
        )
    max_tokens = request.max_completion_tokens or request.max_tokens or settings.default_max_tokens
    options: dict[str, Any] = {
        "max_new_tokens": min(max_tokens, context_length),
        "n": num_completions,
        "continue_final_message": _continue_final_message(request),
        "grammar": grammar,
        "do_sample": True,
        **_OPENAI_DEFAULTS,
        **settings.sampling_defaults,
    }
    if request.seed is not None:
        options["random_seed"] = request.seed % 2**64
    if request.logprobs:
        options["logprobs"] = request.top_logprobs or 0
    if request.min_tokens:
        options["min_new_tokens"] = min(request.min_tokens, options["max_new_tokens"])
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    options["stop_words"] = tuple(filter(None, stop))
    options["stop_token_ids"] = tuple(request.stop_token_ids or ())
    if request.logit_bias:
        options["logit_bias"] = {int(i): bias for i, bias in request.logit_bias.items()}
    for name in (*_SAMPLING_OPTIONS, "ignore_eos", "skip_special_tokens"):
        if (value := getattr(request, name)) is not None:
            options[name] = value
    return GenerationConfig(**options)


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{param}: {message}", param)


_UNION_MESSAGES = {
    "tool_choice": "'none', 'auto', 'required' or an object with a function is expected",
    "schema": "an object, true or false is expected",
    "json": "a JSON schema is expected, as an object or a string",
    "guided_json": "a JSON schema is expected, as an object or a string",
    "content": "a string or a list of parts is expected",
    "stop": "a string or a list of strings is expected",
    "image_url": "a string or an object with a url is expected",
    "video_url": "a string or an object with a url is expected",
}
"""For each field with two types: the message for a value of neither."""
_WRONG_TYPE = frozenset(
    {"string_type", "list_type", "model_type", "int_type", "float_type", "bool_type"}
)


def _as_api_error(error: ValidationError) -> ApiError:
    """Describe the first fault; values are not repeated, because they can be long."""
    errors: list[Mapping[str, Any]] = list(error.errors(include_url=False, include_input=False))
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {first['ctx']['error']}")
    paths = {id(other): _field_path(other["loc"]) for other in errors}
    related = [other for other in errors if other["loc"][:1] == first["loc"][:1]]
    # A field of two types has an error for each; that of the value's own type is to the point.
    specific = [
        other for other in related if paths[id(other)][1] or other["type"] not in _WRONG_TYPE
    ]
    fault = specific[0] if specific else max(related, key=lambda other: len(other["loc"]))
    path, _ = paths[id(fault)]
    message = fault["msg"]
    if fault["type"] == "too_long":
        message = f"at most {fault['ctx']['max_length']} items are supported"
    elif fault["type"] == "union_tag_invalid":
        message = f"the type is not one of {fault['ctx']['expected_tags']}"
    elif not specific:
        message = _UNION_MESSAGES.get(str(path[-1]), "a string, a number or a boolean is expected")
    param = ".".join(str(step)[:100] for step in path if step != "[key]")
    code = "missing_parameter" if fault["type"] == "missing" else "invalid_value"
    return ApiError(400, code, f"{param}: {message}" if param else message, param or None)


def _field_path(location: tuple[int | str, ...]) -> tuple[list[int | str], bool]:
    """Drop the names of union members from the location of a validation error.

    Returns:
        The path of the field, and whether the error is about the field, not a member of a union.
    """
    path: list[int | str] = []
    is_member = False
    for step in location:
        is_member = not is_member and _is_union(path)
        if not is_member:
            path.append(step)
    return path, not is_member


def _is_union(path: list[int | str]) -> bool:
    """Return whether a field has several types, such as ``messages.0.content``."""
    match path:
        case ["response_format"] | ["guided_json"] | ["structured_outputs", "json"]:
            return True
        case ["response_format", "json_schema", "schema"] | ["tool_choice"]:
            return True
        case ["stop"] | ["messages", _, "content"] | ["messages", _, "content", _]:
            return True
        case ["messages", _, "content", _, "image_url" | "video_url"]:
            return True
        case ["messages", _, "content", _, "image_url" | "video_url", name]:
            return name not in ("url", "detail")
    return False

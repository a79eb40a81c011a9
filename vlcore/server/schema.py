"""The supported subset of OpenAI's chat API: requests, responses and errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_T = TypeVar("_T")

MAX_MESSAGES = 4096
"""Maximum number of messages of a request."""
MAX_PARTS = 4096
"""Maximum number of parts of a message."""
_MAX_STOP_STRINGS = 16
_MAX_BIASED_TOKENS = 1024
_MAX_TOOLS = 128
_UNSUPPORTED = "Not supported: only its neutral value is accepted."
_EXTENSION = "An extension of OpenAI's API."
_NO_EFFECT = "Has no effect."


class _Ignored:
    """A value whose content does not matter: ``None`` for null, ``True`` for any other.

    The value is not converted to Python objects, however large it is.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_default_schema(
            core_schema.none_schema(), default=True, on_error="default"
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {}


def _as_int(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _let_threads_run(value: _T) -> _T:
    """Return a value.

    pydantic validates a whole request while other threads wait, and those can run whenever a
    function of Python is called.
    """
    return value


Ignored = Annotated[Any, _Ignored]
Integer = Annotated[int, BeforeValidator(_as_int)]
"""An integer, which some clients write as a float: 8.0."""
EmptyList = Annotated[list[Ignored], Field(max_length=0)]
EmptyDict = Annotated[dict[str, Ignored], Field(max_length=0)]


class _Model(BaseModel):
    """A part of a request. Unknown fields are noted, and their values are ignored."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Ignored] = Field(init=False)

    @property
    def unknown_fields(self) -> list[str]:
        """Names of the fields that are not part of the API and not null."""
        return [name for name, value in (self.model_extra or {}).items() if value is not None]


class TextPart(_Model):
    """Text within a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    cache_control: Ignored = Field(None, description=_NO_EFFECT)
    annotations: Ignored = Field(None, description=_NO_EFFECT)


class ImageUrl(BaseModel):
    """The URL of an image; additional fields are passed on as options of the model."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str | int | float | bool | None] = Field(init=False)
    url: str = Field(min_length=1, description="An http(s) or data URL.")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Model):
    """An image within a message."""

    type: Literal["image_url", "input_image"]
    image_url: Annotated[str, Field(min_length=1)] | ImageUrl
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = Field(None, description=_UNSUPPORTED)
    cache_control: Ignored = Field(None, description=_NO_EFFECT)


class VideoUrl(BaseModel):
    """The URL of a video; additional fields, such as ``fps``, are passed on as options."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str | int | float | bool | None] = Field(init=False)
    url: str = Field(min_length=1, description="An http(s) or data URL.")


class VideoPart(_Model):
    """A video within a message."""

    type: Literal["video_url"]
    video_url: Annotated[str, Field(min_length=1)] | VideoUrl
    cache_control: Ignored = Field(None, description=_NO_EFFECT)


class RefusalPart(_Model):
    """The refusal of an earlier completion, which clients send back with it."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[
    Annotated[TextPart | ImagePart | VideoPart | RefusalPart, Field(discriminator="type")],
    AfterValidator(_let_threads_run),
]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]
StopString = Annotated[str, Field()]
StopStrings = Annotated[list[StopString], Field(max_length=_MAX_STOP_STRINGS, fail_fast=True)]


LogitBias = Annotated[
    dict[
        Annotated[str, Field(pattern="^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(max_length=_MAX_BIASED_TOKENS, fail_fast=True),
]


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class CalledFunction(_Model):
    """The function that a call of a tool calls."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str = Field(description="The arguments, as the text of a JSON object.")


class ToolCallItem(_Model):
    """A call of a tool in an earlier message of the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(_Model):
    """A message. Fields of earlier completions that clients send back are accepted."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    name: str | None = Field(None, description=_NO_EFFECT)
    tool_calls: (
        Annotated[list[ToolCallItem], Field(max_length=_MAX_TOOLS, fail_fast=True)] | None
    ) = Field(None, description="The calls of a message of the assistant.")
    tool_call_id: str | None = Field(
        None, description="The call whose result a message of the role tool has."
    )
    function_call: None = Field(None, description=_UNSUPPORTED)
    audio: None = Field(None, description=_UNSUPPORTED)
    refusal: Ignored = Field(None, description=_NO_EFFECT)
    reasoning: Ignored = Field(None, description=_NO_EFFECT)
    reasoning_content: Ignored = Field(None, description=_NO_EFFECT)
    annotations: Ignored = Field(None, description=_NO_EFFECT)
    regions: Ignored = Field(None, description=_NO_EFFECT)
    cache_control: Ignored = Field(None, description=_NO_EFFECT)


class StreamOptions(_Model):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description=_NO_EFFECT)
    continuous_usage_stats: Literal[False] | None = Field(None, description=_UNSUPPORTED)

    @property
    def has_effect(self) -> bool:
        """Whether an option has another value than its default."""
        return bool(self.include_usage)


class ToolFunction(_Model):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="The JSON schema of the arguments.")
    strict: bool | None = Field(None, description=_NO_EFFECT)


class Tool(_Model):
    """A tool that the model may call."""

    type: Literal["function"]
    function: ToolFunction


class ChosenFunction(_Model):
    """The function that the model must call."""

    name: str


class ChosenTool(_Model):
    """The tool that the model must call."""

    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(_Model):
    """The JSON schema of a completion."""

    name: str | None = Field(None, max_length=256, description=_NO_EFFECT)
    description: str | None = Field(None, description=_NO_EFFECT)
    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = Field(None, description="Has no effect: a schema always applies.")


class TextFormat(_Model):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(_Model):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(_Model):
    """JSON that is valid for a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, fail_fast=True)]


class StructuredOutputs(_Model):
    """The form of a completion; exactly one of the fields."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: Choices | None = None
    json_object: bool | None = None
    grammar: None = Field(None, description=_UNSUPPORTED)
    structural_tag: None = Field(None, description=_UNSUPPORTED)
    whitespace_pattern: None = Field(None, description=_UNSUPPORTED)


class ChatRequest(_Model):
    """A conversation to continue. Unknown fields are ignored, and named in ``warnings``."""

    model: str
    messages: Annotated[
        list[Annotated[ChatMessage, AfterValidator(_let_threads_run)]],
        Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    ]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Integer | None = Field(None, ge=1)
    max_completion_tokens: Integer | None = Field(None, ge=1)
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 (or less than 0.00001) selects the most likely token."
    )
    top_p: float | None = Field(None, ge=0, le=1, description="0 selects the most likely token.")
    n: Integer | None = Field(None, ge=1)
    stop: str | StopStrings | None = None
    seed: Integer | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = Field(
        None, description="A number to add to the logit of each token, by its id."
    )
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(None, ge=0, le=20)
    top_k: Integer | None = Field(None, ge=-1, description=f"{_EXTENSION} 0 and -1: no limit.")
    min_p: float | None = Field(None, ge=0, le=1, description=_EXTENSION)
    min_tokens: Integer | None = Field(None, ge=0, description=_EXTENSION)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description=_EXTENSION)
    ignore_eos: bool | None = Field(None, description=_EXTENSION)
    skip_special_tokens: bool | None = Field(None, description=_EXTENSION)
    stop_token_ids: Annotated[list[Integer], Field(max_length=256, fail_fast=True)] | None = Field(
        None, description=_EXTENSION
    )
    add_generation_prompt: bool | None = Field(
        None, description=f"{_EXTENSION} False if the last message is continued, or else true."
    )
    continue_final_message: bool | None = Field(
        None,
        description=f"{_EXTENSION} Continue a last message of the assistant, which is the default, "
        "or start a new message after it.",
    )

    add_special_tokens: Literal[False] | None = Field(None, description=_UNSUPPORTED)
    allowed_token_ids: EmptyList | None = Field(None, description=_UNSUPPORTED)
    audio: None = Field(None, description=_UNSUPPORTED)
    bad_words: EmptyList | None = Field(None, description=_UNSUPPORTED)
    best_of: Literal[1] | None = Field(None, description=_UNSUPPORTED)
    chat_template: None = Field(None, description=_UNSUPPORTED)
    chat_template_kwargs: EmptyDict | None = Field(None, description=_UNSUPPORTED)
    documents: EmptyList | None = Field(None, description=_UNSUPPORTED)
    early_stopping: Literal[False] | None = Field(None, description=_UNSUPPORTED)
    echo: Literal[False] | None = Field(None, description=_UNSUPPORTED)
    function_call: Literal["none", "auto"] | None = Field(None, description=_UNSUPPORTED)
    functions: EmptyList | None = Field(None, description=_UNSUPPORTED)
    guided_choice: Choices | None = Field(None, description=_EXTENSION)
    guided_grammar: None = Field(None, description=_UNSUPPORTED)
    guided_json: dict[str, Any] | str | None = Field(None, description=_EXTENSION)
    guided_regex: Annotated[str, Field(min_length=1)] | None = Field(None, description=_EXTENSION)
    include_stop_str_in_output: Literal[False] | None = Field(None, description=_UNSUPPORTED)
    length_penalty: float | None = Field(None, ge=1, le=1, description=_UNSUPPORTED)
    logits_processors: EmptyList | None = Field(None, description=_UNSUPPORTED)
    mm_processor_kwargs: EmptyDict | None = Field(None, description=_UNSUPPORTED)
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = Field(
        None, description=_UNSUPPORTED
    )
    prompt_logprobs: None = Field(None, description=_UNSUPPORTED)
    reasoning_effort: Literal["none"] | None = Field(None, description=_UNSUPPORTED)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description=_EXTENSION)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = Field(
        None, description="auto by default. none leaves the tools out of the prompt."
    )
    tools: Annotated[list[Tool], Field(max_length=_MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="Functions that the model may call, if its chat template supports them."
    )
    truncate_prompt_tokens: None = Field(None, description=_UNSUPPORTED)
    typical_p: float | None = Field(None, ge=1, le=1, description=_UNSUPPORTED)
    use_beam_search: Literal[False] | None = Field(None, description=_UNSUPPORTED)
    verbosity: Literal["medium"] | None = Field(None, description=_UNSUPPORTED)
    web_search_options: None = Field(None, description=_UNSUPPORTED)

    metadata: Ignored = Field(None, description=_NO_EFFECT)
    parallel_tool_calls: bool | None = Field(
        None, description="False for one call with the tool choice required; otherwise no effect."
    )
    prediction: Ignored = Field(None, description=_NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=_NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=_NO_EFFECT)
    safety_identifier: str | None = Field(None, description=_NO_EFFECT)
    service_tier: str | None = Field(None, description=_NO_EFFECT)
    spaces_between_special_tokens: bool | None = Field(None, description=_NO_EFFECT)
    store: bool | None = Field(None, description=_NO_EFFECT)
    user: str | None = Field(None, description=_NO_EFFECT)


class TokenLogprob(BaseModel):
    """The log-probability of a token."""

    token: str
    logprob: float
    bytes: list[int] | None
    """The token's UTF-8 bytes; ``None`` if the token is a part of a character."""


class GeneratedTokenLogprob(TokenLogprob):
    """The log-probabilities of a generated token and of its most likely alternatives."""

    top_logprobs: list[TokenLogprob]


class Logprobs(BaseModel):
    """The log-probabilities of each token of a completion."""

    content: list[GeneratedTokenLogprob]


class CompletionRegion(BaseModel):
    """A rectangle of the last image that a completion refers to."""

    label: str
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, as fractions of the image's width and height."""


class CompletionFunction(BaseModel):
    """The function that a completion calls."""

    name: str
    arguments: str
    """The arguments, as JSON."""


class CompletionToolCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: CompletionFunction


class CompletionMessage(BaseModel):
    """The generated message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """The text; ``None`` if there are only calls of tools."""
    refusal: None = None
    tool_calls: list[CompletionToolCall] | None = None


class Choice(BaseModel):
    """One of the completions of a request."""

    index: int
    message: CompletionMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: Logprobs | None = None
    regions: list[CompletionRegion] | None = None


class PromptDetails(BaseModel):
    """The kinds of tokens in a prompt."""

    image_tokens: int
    """Number of image embeddings in the prompt."""
    video_tokens: int = 0
    """Number of embeddings of videos in the prompt."""
    cached_tokens: int = 0
    """Number of tokens that were not computed, because the engine had kept them."""


class Usage(BaseModel):
    """The token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """The response to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    warnings: list[str] | None = None
    """Parts of the request that had no effect."""


class Model(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vlcore"


class ModelList(BaseModel):
    """The list of served models, which is the one model."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """Describes why a request failed."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorBody

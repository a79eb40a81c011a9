"""The supported subset of OpenAI's chat API: requests, responses and errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

_MAX_STOP_STRINGS = 16
_UNSUPPORTED = "Not supported: only its neutral value is accepted."


class TextPart(BaseModel):
    """Text within a message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """The URL of an image; additional fields are passed on as options of the model."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str | int | float | bool] = Field(init=False)
    url: str = Field(min_length=1, description="An http(s) or data URL.")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    """An image part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _text_or_list(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else None


# With a discriminator, an error is about the member of the union that was meant.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("list")],
    Discriminator(
        _text_or_list,
        custom_error_type="text_or_list",
        custom_error_message="a string or a list of parts is expected",
    ),
]
StopString = Annotated[str, Field(min_length=1)]
StopStrings = Annotated[
    Annotated[StopString, Tag("text")]
    | Annotated[list[StopString], Field(max_length=_MAX_STOP_STRINGS), Tag("list")],
    Discriminator(
        _text_or_list,
        custom_error_type="text_or_list",
        custom_error_message="a string or a list of strings is expected",
    ),
]


class ChatMessage(BaseModel):
    """A message. Fields of earlier completions that clients send back are accepted."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(BaseModel):
    """The format of the completion; free text is the only one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]


class ChatRequest(BaseModel):
    """A conversation to continue. Unknown fields are refused, so that none is silently lost."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 (or less than 0.00001) selects the most likely token."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: StopStrings | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_k: int | None = Field(None, ge=0, description="An extension of OpenAI's API.")
    min_p: float | None = Field(None, ge=0, le=1, description="An extension of OpenAI's API.")
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=100, description="An extension of OpenAI's API."
    )
    ignore_eos: bool | None = Field(None, description="An extension of OpenAI's API.")

    frequency_penalty: float | None = Field(None, ge=0, le=0, description=_UNSUPPORTED)
    presence_penalty: float | None = Field(None, ge=0, le=0, description=_UNSUPPORTED)
    response_format: ResponseFormat | None = Field(None, description=_UNSUPPORTED)
    modalities: list[Literal["text"]] | None = Field(None, description=_UNSUPPORTED)
    tools: list[Any] | None = Field(None, max_length=0, description=_UNSUPPORTED)
    tool_choice: Literal["none", "auto"] | None = Field(None, description=_UNSUPPORTED)
    logit_bias: dict[str, float] | None = Field(None, max_length=0, description=_UNSUPPORTED)
    user: str | None = Field(None, description="Has no effect.")
    metadata: dict[str, Any] | None = Field(None, description="Has no effect.")
    store: bool | None = Field(None, description="Has no effect.")
    service_tier: str | None = Field(None, description="Has no effect.")


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


class CompletionMessage(BaseModel):
    """The generated message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One of the completions of a request."""

    index: int
    message: CompletionMessage
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None = None
    regions: list[CompletionRegion] | None = None


class PromptDetails(BaseModel):
    """The kinds of tokens in a prompt."""

    image_tokens: int
    """Number of image embeddings in the prompt."""
    cached_tokens: int = 0


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

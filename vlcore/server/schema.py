"""The requests and answers of OpenAI's chat API, as far as they mean something here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

_MAX_STOP_WORDS = 16
_UNSUPPORTED = "Not supported: anything but its neutral value is refused."


class TextPart(BaseModel):
    """A piece of text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where a picture lies; options of the model's own beside it are passed on."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str | int | float | bool] = Field(init=False)
    url: str = Field(min_length=1, description="An http(s) or data URL.")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    """A picture."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _text_or_list(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else None


# An error then is about the alternative that was meant.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("list")],
    Discriminator(
        _text_or_list,
        custom_error_type="text_or_list",
        custom_error_message="a text or a list of parts is expected",
    ),
]
StopWord = Annotated[str, Field(min_length=1)]
StopWords = Annotated[
    Annotated[StopWord, Tag("text")]
    | Annotated[list[StopWord], Field(max_length=_MAX_STOP_WORDS), Tag("list")],
    Discriminator(
        _text_or_list,
        custom_error_type="text_or_list",
        custom_error_message="a text or a list of texts is expected",
    ),
]


class ChatMessage(BaseModel):
    """One turn. What clients echo of earlier answers (``refusal: null`` and the like) is taken."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(BaseModel):
    """Free text is the only format."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]


class ChatRequest(BaseModel):
    """A conversation to go on with. Unknown fields are refused, so that none is silently lost."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 (or less than 0.00001) takes the likeliest token."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: StopWords | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_k: int | None = Field(None, ge=0, description="Not of OpenAI's API.")
    min_p: float | None = Field(None, ge=0, le=1, description="Not of OpenAI's API.")
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=100, description="Not of OpenAI's API."
    )
    ignore_eos: bool | None = Field(None, description="Not of OpenAI's API.")

    frequency_penalty: float | None = Field(None, ge=0, le=0, description=_UNSUPPORTED)
    presence_penalty: float | None = Field(None, ge=0, le=0, description=_UNSUPPORTED)
    response_format: ResponseFormat | None = Field(None, description=_UNSUPPORTED)
    modalities: list[Literal["text"]] | None = Field(None, description=_UNSUPPORTED)
    tools: list[Any] | None = Field(None, max_length=0, description=_UNSUPPORTED)
    tool_choice: Literal["none", "auto"] | None = Field(None, description=_UNSUPPORTED)
    logit_bias: dict[str, float] | None = Field(None, max_length=0, description=_UNSUPPORTED)
    user: str | None = Field(None, description="Without effect.")
    metadata: dict[str, Any] | None = Field(None, description="Without effect.")
    store: bool | None = Field(None, description="Without effect.")
    service_tier: str | None = Field(None, description="Without effect.")


class TokenLogprob(BaseModel):
    """How likely a token was."""

    token: str
    logprob: float
    bytes: list[int] | None
    """``None`` where the token is a part of a character."""


class ChosenLogprob(TokenLogprob):
    """How likely the answer's token was, and the likeliest ones."""

    top_logprobs: list[TokenLogprob]


class Logprobs(BaseModel):
    """Of each token of an answer."""

    content: list[ChosenLogprob]


class CompletionRegion(BaseModel):
    """A rectangle of the last picture that an answer points at."""

    label: str
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, as fractions of its width and height."""


class CompletionMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One of the answers to a request."""

    index: int
    message: CompletionMessage
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None = None
    regions: list[CompletionRegion] | None = None


class PromptDetails(BaseModel):
    """What a prompt's tokens are."""

    image_tokens: int
    """Rows of pictures."""
    cached_tokens: int = 0


class Usage(BaseModel):
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """The answers to a request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    warnings: list[str] | None = None
    """What of the request had no effect."""


class Model(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vlcore"


class ModelList(BaseModel):
    """The models that are served: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """Why a request has no answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The shape of every error."""

    error: ErrorBody

"""The messages of a request, with their texts, images, videos and calls of tools."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)

from vlcore.server.schema.values import (
    NO_EFFECT,
    UNSUPPORTED,
    Ignored,
    RequestModel,
    let_threads_run,
)

MAX_PARTS = 4096
"""Maximum number of parts of a message."""
MAX_TOOLS = 128
"""Maximum number of tools of a request, and of calls of a message."""


class TextPart(RequestModel):
    """Text within a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    cache_control: Ignored = Field(None, description=NO_EFFECT)
    annotations: Ignored = Field(None, description=NO_EFFECT)


class ImageUrl(BaseModel):
    """The URL of an image; additional fields are passed on as options of the model."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str | int | float | bool | None] = Field(init=False)
    url: str = Field(min_length=1, description="An http(s) or data URL.")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(RequestModel):
    """An image within a message."""

    type: Literal["image_url", "input_image"]
    image_url: Annotated[str, Field(min_length=1)] | ImageUrl
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = Field(None, description=UNSUPPORTED)
    cache_control: Ignored = Field(None, description=NO_EFFECT)


class VideoUrl(BaseModel):
    """The URL of a video; additional fields, such as ``fps``, are passed on as options."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str | int | float | bool | None] = Field(init=False)
    url: str = Field(min_length=1, description="An http(s) or data URL.")


class VideoPart(RequestModel):
    """A video within a message."""

    type: Literal["video_url"]
    video_url: Annotated[str, Field(min_length=1)] | VideoUrl
    cache_control: Ignored = Field(None, description=NO_EFFECT)


class RefusalPart(RequestModel):
    """The refusal of an earlier completion, which clients send back with it."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[
    Annotated[TextPart | ImagePart | VideoPart | RefusalPart, Field(discriminator="type")],
    AfterValidator(let_threads_run),
]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]


class CalledFunction(RequestModel):
    """The function that a call of a tool calls."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str = Field(description="The arguments, as the text of a JSON object.")


class ToolCallItem(RequestModel):
    """A call of a tool in an earlier message of the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(RequestModel):
    """A message. Fields of earlier completions that clients send back are accepted."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    name: str | None = Field(None, description=NO_EFFECT)
    tool_calls: (
        Annotated[list[ToolCallItem], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
    ) = Field(None, description="The calls of a message of the assistant.")
    tool_call_id: str | None = Field(
        None, description="The call whose result a message of the role tool has."
    )
    function_call: None = Field(None, description=UNSUPPORTED)
    audio: None = Field(None, description=UNSUPPORTED)
    refusal: Ignored = Field(None, description=NO_EFFECT)
    reasoning: Ignored = Field(None, description=NO_EFFECT)
    reasoning_content: Ignored = Field(None, description=NO_EFFECT)
    annotations: Ignored = Field(None, description=NO_EFFECT)
    regions: Ignored = Field(None, description=NO_EFFECT)
    cache_control: Ignored = Field(None, description=NO_EFFECT)

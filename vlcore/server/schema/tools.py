"""The tools of a request, which the model may call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
)

from vlcore.server.schema.values import (
    NO_EFFECT,
    RequestModel,
)

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class ToolFunction(RequestModel):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="The JSON schema of the arguments.")
    strict: bool | None = Field(None, description=NO_EFFECT)


class Tool(RequestModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: ToolFunction


class ChosenFunction(RequestModel):
    """The function that the model must call."""

    name: str


class ChosenTool(RequestModel):
    """The tool that the model must call."""

    type: Literal["function"]
    function: ChosenFunction

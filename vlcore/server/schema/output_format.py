"""The forms that a request may require of a completion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
)

from vlcore.server.schema.values import (
    NO_EFFECT,
    UNSUPPORTED,
    RequestModel,
)


class JsonSchema(RequestModel):
    """The JSON schema of a completion."""

    name: str | None = Field(None, max_length=256, description=NO_EFFECT)
    description: str | None = Field(None, description=NO_EFFECT)
    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = Field(None, description="Has no effect: a schema always applies.")


class TextFormat(RequestModel):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(RequestModel):
    """JSON that is valid for a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, fail_fast=True)]


class StructuredOutputs(RequestModel):
    """The form of a completion; exactly one of the fields."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: Choices | None = None
    json_object: bool | None = None
    grammar: None = Field(None, description=UNSUPPORTED)
    structural_tag: None = Field(None, description=UNSUPPORTED)
    whitespace_pattern: None = Field(None, description=UNSUPPORTED)

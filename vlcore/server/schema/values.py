"""Values and descriptions that the parts of a request share."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import (
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

UNSUPPORTED = "Not supported: only its neutral value is accepted."
EXTENSION = "An extension of OpenAI's API."
NO_EFFECT = "Has no effect."


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


def let_threads_run(value: _T) -> _T:
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


class RequestModel(BaseModel):
    """A part of a request. Unknown fields are noted, and their values are ignored."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Ignored] = Field(init=False)

    @property
    def unknown_fields(self) -> list[str]:
        """Names of the fields that are not part of the API and not null."""
        return [name for name, value in (self.model_extra or {}).items() if value is not None]

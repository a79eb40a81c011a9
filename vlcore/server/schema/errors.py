"""``ErrorResponse``: the body of every error response."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """Describes why a request failed."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorBody

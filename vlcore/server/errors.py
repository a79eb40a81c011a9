"""``ApiError``: what a request is told that has no answer, in the shape of OpenAI's API."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from vlcore.errors import (
    ContextLengthError,
    EngineClosedError,
    ImageError,
    ImageLimitError,
    OptionError,
    PromptError,
)

logger = logging.getLogger(__name__)


@dataclass
class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: the HTTP status.
        code: a word for programs.
        message: a sentence for people.
        param: the part of the request that is at fault.
        headers: of the response.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        return {
            "error": {
                "message": self.message,
                "type": _kind(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The error as an answer."""
        return JSONResponse(self.body, self.status, dict(self.headers))


def as_api_error(error: BaseException) -> ApiError:
    """Say of any error what the client may know; what is our own fault goes to the log."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return ApiError(400, "context_length_exceeded", str(error), "messages")
        case ImageLimitError():
            return ApiError(400, "image_too_large", str(error), "messages")
        case ImageError():
            return ApiError(400, "invalid_image", str(error), "messages")
        case PromptError():
            return ApiError(400, "invalid_prompt", str(error), "messages")
        case OptionError():
            return ApiError(400, "invalid_option", str(error))
        case EngineClosedError():
            return stopping()
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "internal_error", "the server failed; its log says why")


def stopping() -> ApiError:
    """Say that the server is about to end."""
    return ApiError(
        503, "stopping", "the server is stopping: ask again later", headers={"Retry-After": "10"}
    )


def head_too_large(limit: int) -> ApiError:
    """Say that a request's line and headers are too long."""
    return ApiError(
        431,
        "head_too_large",
        f"the request's line and headers are larger than {limit} bytes (max_head_bytes)",
    )


def _kind(status: int) -> str:
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")

"""``ApiError``: a request that is not served, in the error shape of OpenAI's API."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from vlcore.errors import (
    ContextLengthError,
    EngineClosedError,
    GrammarError,
    ImageDownloadError,
    ImageError,
    ImageLimitError,
    OptionError,
    PromptError,
    VideoDownloadError,
    VideoError,
    VideoLimitError,
    VlcoreError,
)

logger = logging.getLogger(__name__)


@dataclass
class ApiError(Exception):
    """A request that is not served.

    Args:
        status: The HTTP status code.
        code: A machine-readable identifier of the error.
        message: A sentence for people.
        param: The field of the request that is at fault.
        headers: Additional headers of the response.
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
                "type": _error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the error as an HTTP response."""
        return JSONResponse(self.body, self.status, dict(self.headers))


_REQUEST_ERRORS: tuple[tuple[type[VlcoreError], str, str | None], ...] = (
    (ContextLengthError, "context_length_exceeded", "messages"),
    (ImageLimitError, "image_too_large", "messages"),
    (ImageDownloadError, "invalid_image_url", "messages"),
    (ImageError, "invalid_image", "messages"),
    (VideoLimitError, "video_too_large", "messages"),
    (VideoDownloadError, "invalid_video_url", "messages"),
    (VideoError, "invalid_video", "messages"),
    (PromptError, "invalid_prompt", "messages"),
    (GrammarError, "invalid_grammar", None),
    (OptionError, "invalid_option", None),
)
"""Errors that are the request's fault, special ones first: their code and field in the API."""


def as_api_error(error: BaseException) -> ApiError:
    """Convert any error into one for the client; an internal error is logged and not disclosed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineClosedError):
        return stopping_error()
    for kind, code, param in _REQUEST_ERRORS:
        if isinstance(error, kind):
            return ApiError(400, code, str(error), param)
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "internal_error", "the server failed; its log has the details")


def stopping_error() -> ApiError:
    """Return the error for a request that arrives while the server stops."""
    return ApiError(
        503, "stopping", "the server is stopping: retry later", headers={"Retry-After": "10"}
    )


def overloaded_error(message: str) -> ApiError:
    """Return the error for a connection or a body above the server's bounds."""
    return ApiError(503, "overloaded", f"{message}: retry later", headers={"Retry-After": "1"})


def release_frames(error: BaseException | None) -> None:
    """Clear the local variables of the frames that an exception refers to.

    An exception refers to the frames that it passed, and a frame to the exception. Such a cycle
    keeps request bodies and images in memory until the garbage collector's next full run.
    """
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def head_too_large_error(limit: int) -> ApiError:
    """Return the error for a request line and headers of more than ``limit`` bytes."""
    return ApiError(
        431,
        "head_too_large",
        f"the request line and headers are larger than {limit} bytes (max_head_bytes)",
    )


def _error_type(status: int) -> str:
    types = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return types.get(status, "server_error" if status >= 500 else "invalid_request_error")

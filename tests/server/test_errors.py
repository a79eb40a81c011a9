from __future__ import annotations

import gc
import json
import logging
import weakref

import pytest

from vlcore.errors import (
    ContextLengthError,
    EngineClosedError,
    ImageDownloadError,
    ImageError,
    ImageLimitError,
    OptionError,
    PromptError,
    VlcoreError,
)
from vlcore.server.errors import ApiError, as_api_error, release_frames


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextLengthError("too long"), 400, "context_length_exceeded"),
        (ImageLimitError("too large"), 400, "image_too_large"),
        (ImageDownloadError("status 404"), 400, "invalid_image_url"),
        (ImageError("damaged"), 400, "invalid_image"),
        (PromptError("no role"), 400, "invalid_prompt"),
        (OptionError("out of range"), 400, "invalid_option"),
    ],
)
def test_an_error_of_the_client_is_reported(error: VlcoreError, status: int, code: str) -> None:
    api_error = as_api_error(error)
    assert (api_error.status, api_error.code, api_error.message) == (status, code, str(error))
    assert api_error.body["error"]["type"] == "invalid_request_error"


def test_a_stopping_server_sends_retry_after() -> None:
    api_error = as_api_error(EngineClosedError("closed"))
    assert (api_error.status, api_error.code) == (503, "stopping")
    assert api_error.response().headers["retry-after"] == "10"


@pytest.mark.parametrize("error", [RuntimeError("/secret/path"), VlcoreError("/secret/path")])
def test_an_internal_error_is_logged_and_not_disclosed(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        api_error = as_api_error(error)
    assert (api_error.status, api_error.code) == (500, "internal_error")
    assert b"secret" not in bytes(api_error.response().body)
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (504, "server_error"),
    ],
)
def test_the_shape_of_an_error(status: int, kind: str) -> None:
    response = ApiError(status, "code", "message", "param", {"Retry-After": "3"}).response()
    assert response.status_code == status
    assert response.headers["retry-after"] == "3"
    error = {"message": "message", "type": kind, "param": "param", "code": "code"}
    assert json.loads(bytes(response.body)) == {"error": error}


def test_a_released_error_keeps_nothing_alive() -> None:
    class Body:
        pass

    references: list[weakref.ref[Body]] = []

    def refuse() -> None:
        body = Body()
        references.append(weakref.ref(body))
        error = ApiError(
            400, "code", "message"
        )  # the frame refers to the error, and it to the frame
        raise error

    def handle() -> None:
        try:
            try:
                refuse()
            except ApiError as cause:
                raise RuntimeError("wrapped") from cause
        except RuntimeError as error:
            release_frames(error)

    gc.disable()
    try:
        handle()
        assert references[0]() is None
    finally:
        gc.enable()

"""One chat request from its first byte to its last, within its deadline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from vlcore.inference.pipeline import Pipeline
from vlcore.server.admission import Admission
from vlcore.server.completion import Completion, error_event
from vlcore.server.errors import ApiError, as_api_error, stopping
from vlcore.server.http_protocol import ABORT
from vlcore.server.metrics import Metrics
from vlcore.server.request_parsing import parse_request
from vlcore.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_LAST_WORD_S = 1.0
"""For a client to take in why it gets no answer, or no more of it."""
_LONG_BODY = 64 * 1024
"""Bytes that take long enough to parse to hold other requests up."""


class _DisconnectedError(Exception):
    """The client has gone: there is nobody to tell."""


class ChatHandler(Response):
    """Reads the request and writes its answer; whatever ends it frees all that it holds.

    Args:
        request: the request, its body unread.
        pipeline: answers it.
        settings: the server's limits.
        admission: gives it a place.
        metrics: counts it.
    """

    def __init__(
        self,
        request: Request,
        pipeline: Pipeline,
        settings: ServerSettings,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        super().__init__()
        self._request = request
        self._pipeline = pipeline
        self._settings = settings
        self._admission = admission
        self._metrics = metrics
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or say why not."""

        async def note_and_send(message: Message) -> None:
            self._has_started = True
            await send(message)

        started = time.perf_counter()
        outcome = "ok"
        try:
            with self._admission.place():
                await self._within_deadline(self._answer(scope, receive, note_and_send))
        except _DisconnectedError:
            outcome = "disconnected"
        except Exception as error:
            failure = as_api_error(error)
            outcome = failure.code
            await self._tell(failure, scope, receive, send)
        except asyncio.CancelledError:  # the server's time to finish is over; so is the task
            failure = stopping()
            outcome = failure.code
            await self._tell(failure, scope, receive, send)
        finally:
            self._metrics.count_outcome(outcome)
            self._metrics.request_seconds.observe(time.perf_counter() - started)

    async def _within_deadline(self, answer: Coroutine[Any, Any, None]) -> None:
        deadline_s = self._settings.deadline_s
        try:
            async with asyncio.timeout(deadline_s) as deadline:
                await answer
        except TimeoutError:
            if not deadline.expired():
                raise
            raise ApiError(
                504,
                "deadline_exceeded",
                f"the answer took longer than {deadline_s:g} s (deadline_s)",
            ) from None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_type()
        body = await self._read(receive)
        arguments = (
            body,
            self._settings,
            self._pipeline.image_options,
            self._pipeline.engine.context_length,
        )
        if len(body) > _LONG_BODY:
            question = await asyncio.to_thread(parse_request, *arguments)
        else:
            question = parse_request(*arguments)
        answer = Completion(self._pipeline, question, self._settings.model_name, self._metrics)
        if question.streams:
            await _unless_gone(receive, lambda: self._stream(answer, send))
            return
        whole = await _unless_gone(receive, answer.whole)
        await JSONResponse(whole)(scope, receive, send)

    def _check_type(self) -> None:
        """Take nothing but JSON: a browser asks leave before it sends that for another site."""
        media_type = self._request.headers.get("content-type", "").partition(";")[0]
        if media_type.strip().lower() != "application/json":
            raise ApiError(
                415,
                "unsupported_media_type",
                "the body must be JSON: Content-Type: application/json is expected",
            )

    async def _read(self, receive: Receive) -> bytes:
        """Read the body, as long as it keeps to its limits."""
        timeout_s, limit = self._settings.body_timeout_s, self._settings.max_body_bytes
        too_large = ApiError(
            413, "body_too_large", f"the request is larger than {limit} bytes (max_body_bytes)"
        )
        stated = self._request.headers.get("content-length", "")
        if stated.isdigit() and int(stated[:20]) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _DisconnectedError
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408, "body_timeout", f"the body took longer than {timeout_s:g} s (body_timeout_s)"
            ) from None

    async def _stream(self, answer: Completion, send: Send) -> None:
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                if not self._has_started:  # an error before the first piece still has its status
                    await send(
                        {
                            "type": "http.response.start",
                            "status": 200,
                            "headers": [
                                (b"content-type", b"text/event-stream; charset=utf-8"),
                                (b"cache-control", b"no-store"),
                                (b"x-accel-buffering", b"no"),
                            ],
                        }
                    )
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, failure: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """Say why there is no answer; a client that does not even read this is cut off."""
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                if self._has_started:
                    event = error_event(failure.body)
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                else:
                    response = failure.response()
                    response.headers["connection"] = "close"  # the body may not have been read
                    await response(scope, receive, send)
        except TimeoutError:
            logger.warning("a client did not read its answer in time")
            scope[ABORT]()
            await asyncio.sleep(0)  # the connection learns of it


async def _unless_gone(receive: Receive, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Do the work; give it up where the client goes away first.

    Raises:
        _DisconnectedError: it did.
    """
    working = asyncio.create_task(work())
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _DisconnectedError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""Handles one chat request from its first byte to its last, within its deadline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from vlcore._utils.fair_queue import current_client
from vlcore.errors import GrammarError
from vlcore.server.admission import Admission
from vlcore.server.completion import Completion, error_event
from vlcore.server.connections import Uploads, client_address
from vlcore.server.errors import ApiError, as_api_error, release_frames, stopping_error
from vlcore.server.grammar_parsing import grammar_error
from vlcore.server.http_protocol import ABORT
from vlcore.server.metrics import Metrics
from vlcore.server.request_parsing import ParsedRequest, parse_request
from vlcore.server.served_model import ServedModel
from vlcore.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_ERROR_TIMEOUT_S = 1.0
"""Time that a client has to read an error."""
_LARGE_BODY_BYTES = 64 * 1024
"""Size above which a body needs a slot."""
_MAX_PARSED_BYTES = 2 * 1024
"""Size up to which a body is parsed on the event loop. Parsing 64 KiB can take 25 ms."""


class _DisconnectedError(Exception):
    """The client has disconnected."""


@dataclass(frozen=True)
class ChatResources:
    """What all chat requests of a server share."""

    pipeline: ServedModel
    settings: ServerSettings
    admission: Admission
    metrics: Metrics
    uploads: Uploads
    parsers: Executor
    """Threads that parse bodies, except for the smallest ones."""


class ChatHandler(Response):
    """Reads a chat request and sends its response; however it ends, its resources are released.

    Args:
        request: The request, its body unread.
        resources: What all chat requests share.
    """

    def __init__(self, request: Request, resources: ChatResources) -> None:
        super().__init__()
        self._request = request
        self._resources = resources
        self._settings = resources.settings
        self._metrics = resources.metrics
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the completion, or an error."""

        async def record_and_send(message: Message) -> None:
            self._has_started = True
            await send(message)

        current_client.set(self._client())
        started = time.perf_counter()
        outcome = "ok"
        try:
            await self._within_deadline(self._handle(receive, record_and_send))
        except _DisconnectedError:
            outcome = "disconnected"
        except Exception as error:
            api_error = as_api_error(error)
            outcome = api_error.code
            release_frames(error)
            await self._send_error(api_error, scope, receive, send)
        except asyncio.CancelledError:  # the shutdown timeout is over, and so is this task
            api_error = stopping_error()
            outcome = api_error.code
            await self._send_error(api_error, scope, receive, send)
        finally:
            self._metrics.count_outcome(outcome)
            self._metrics.request_seconds.observe(time.perf_counter() - started)

    async def _within_deadline(self, work: Coroutine[Any, Any, None]) -> None:
        deadline_s = self._settings.deadline_s
        try:
            async with asyncio.timeout(deadline_s) as deadline:
                await work
        except TimeoutError:
            if not deadline.expired():
                raise
            raise ApiError(
                504,
                "deadline_exceeded",
                f"the request took longer than {deadline_s:g} s (deadline_s)",
            ) from None

    async def _handle(self, receive: Receive, send: Send) -> None:
        self._check_content_type()
        self._resources.admission.check()
        parsed = await self._read_request(receive)
        try:
            await self._complete(parsed, receive, send)
        except GrammarError as error:
            raise grammar_error(error, parsed.grammar_field) from None

    async def _complete(self, parsed: ParsedRequest, receive: Receive, send: Send) -> None:
        with self._resources.admission.permit():
            completion = Completion(
                self._resources.pipeline, parsed, self._settings.model_name, self._metrics
            )
            if parsed.stream:
                await _until_disconnected(receive, lambda: self._send_events(completion, send))
            else:
                body = await _until_disconnected(receive, completion.create)
                headers = [(b"content-type", b"application/json")]
                headers.append((b"content-length", str(len(body)).encode()))
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _read_request(self, receive: Receive) -> ParsedRequest:
        """Read and parse the body; a large one has a slot until it is parsed."""
        async with AsyncExitStack() as stack:
            body = await self._read_body(receive, stack)
            pipeline = self._resources.pipeline
            facts = (
                self._settings,
                pipeline.image_options,
                pipeline.engine.context_length,
                pipeline.template,
            )
            if len(body) <= _MAX_PARSED_BYTES:
                return parse_request(body, *facts)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._resources.parsers, parse_request, body, *facts)

    def _client(self) -> tuple[str, str]:
        """Return what a client shares its downloads by: its address, and its API key if it has one.

        Where no key is checked, a client could state another one in each request.
        """
        key = self._request.headers.get("authorization", "") if self._settings.api_keys else ""
        return client_address(self._request.scope.get("client")), key

    def _check_content_type(self) -> None:
        """Accept JSON alone: browsers send it to another site only after a CORS preflight."""
        media_type = self._request.headers.get("content-type", "").partition(";")[0]
        if media_type.strip().lower() != "application/json":
            raise ApiError(
                415,
                "unsupported_media_type",
                "the body must be JSON: Content-Type: application/json is expected",
            )

    async def _read_body(self, receive: Receive, stack: AsyncExitStack) -> bytes:
        """Read the body within its limits on size and time.

        Args:
            receive: Returns the next part of the body.
            stack: Keeps the slot of a large body.
        """
        timeout_s, limit = self._settings.body_timeout_s, self._settings.max_body_bytes
        content_length = self._request.headers.get("content-length", "")
        if content_length.isdigit() and int(content_length[:20]) > limit:
            raise _too_large(limit)
        client = client_address(self._request.scope.get("client"))
        parts: list[bytes] = []
        num_bytes = 0
        has_slot = False
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _DisconnectedError
                    parts.append(message.get("body", b""))
                    num_bytes += len(parts[-1])
                    if num_bytes > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(parts)
                    if num_bytes > _LARGE_BODY_BYTES and not has_slot:
                        await stack.enter_async_context(self._resources.uploads.slot(client))
                        has_slot = True
        except TimeoutError:
            raise ApiError(
                408,
                "body_timeout",
                f"the request body took longer than {timeout_s:g} s (body_timeout_s)",
            ) from None

    async def _send_events(self, completion: Completion, send: Send) -> None:
        async with aclosing(completion.stream()) as events:
            async for event in events:
                if not self._has_started:  # an error before the first token still has its status
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
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_error(
        self, error: ApiError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send an error; a client that does not read it is disconnected."""
        try:
            async with asyncio.timeout(_ERROR_TIMEOUT_S):
                if self._has_started:
                    event = error_event(error.body)
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                else:
                    response = error.response()
                    response.headers["connection"] = "close"  # the body may not have been read
                    await response(scope, receive, send)
        except TimeoutError:
            logger.warning("a client did not read its response in time")
            scope.get(ABORT, _leave_open)()
            await asyncio.sleep(0)  # lets the connection process the abort


def _leave_open() -> None:
    """Leave a connection to another server than vlcore's own, which has limits of its own."""


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, "body_too_large", f"the request body is larger than {limit} bytes (max_body_bytes)"
    )


async def _until_disconnected(
    receive: Receive, work: Callable[[], Coroutine[Any, Any, Any]]
) -> Any:
    """Run a coroutine function, and cancel it if the client disconnects first.

    Raises:
        _DisconnectedError: The client disconnected.
    """
    work_task = asyncio.create_task(work())
    disconnect_task = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((work_task, disconnect_task), return_when=asyncio.FIRST_COMPLETED)
        if not work_task.done():
            raise _DisconnectedError
        return work_task.result()
    finally:
        for task in (work_task, disconnect_task):
            task.cancel()
        await asyncio.gather(work_task, disconnect_task, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

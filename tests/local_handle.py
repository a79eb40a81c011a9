"""A handle of Ray Serve whose replicas are objects of this process."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ActorDiedError


class Replica:
    """An object that replies through messages, and that a test can let die."""

    def __init__(self, served: Any) -> None:
        self.served = served
        self.calls: Counter[str] = Counter()
        self.dies_after: int | None = None
        """The number of further values that the replica sends."""

    def check_alive(self) -> None:
        if self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after < 0:
                raise ActorDiedError


class LocalRef:
    """A reference to a value or an error, in the form in which it would be sent."""

    def __init__(self, value: Any) -> None:
        self._message = value if isinstance(value, ActorDiedError) else pickle.dumps(value)

    def value(self) -> Any:
        if isinstance(self._message, ActorDiedError):
            raise self._message
        return pickle.loads(self._message)  # noqa: S301  (made here)

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.value()


class LocalResponse:
    """The response to a call; it runs whether it is read or not."""

    def __init__(self, replica: Replica, method: str, args: Sequence[Any]) -> None:
        self._refs: asyncio.Queue[LocalRef | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(replica, method, args))

    async def _run(self, replica: Replica, method: str, args: Sequence[Any]) -> None:
        try:
            replica.check_alive()
            replica.calls[method] += 1
            sent = [
                arg.value() if isinstance(arg, LocalRef) else LocalRef(arg).value() for arg in args
            ]
            reply = getattr(replica.served, method)(*sent)
            if not hasattr(reply, "__aiter__"):
                self._refs.put_nowait(LocalRef(await reply))
                return
            async with aclosing(reply) as values:
                async for value in values:
                    replica.check_alive()
                    self._refs.put_nowait(LocalRef(value))
        except ActorDiedError as error:
            self._refs.put_nowait(LocalRef(error))
        finally:
            self._refs.put_nowait(None)

    def cancel(self) -> None:
        self._task.cancel()

    async def _to_object_ref_gen(self) -> AsyncGenerator[LocalRef]:
        return self._iterate()

    async def _iterate(self) -> AsyncGenerator[LocalRef]:
        while (ref := await self._refs.get()) is not None:
            yield ref

    async def __aiter__(self) -> AsyncGenerator[Any]:
        async for ref in self._iterate():
            yield await ref

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._first().__await__()

    async def _first(self) -> Any:
        ref = await self._refs.get()
        assert ref is not None
        return await ref


@dataclass
class LocalHandle:
    """Calls the first replica that has not died, as consistent hashing does for one image."""

    replicas: list[Replica]
    method: str = ""
    sessions: list[str] = field(default_factory=list)

    def options(self, *, method_name: str = "", session_id: str = "", **_: Any) -> LocalHandle:
        if session_id:
            self.sessions.append(session_id)
        return LocalHandle(self.replicas, method_name or self.method, self.sessions)

    def remote(self, *args: Any) -> LocalResponse:
        living = (one for one in self.replicas if one.dies_after is None or one.dies_after >= 0)
        return LocalResponse(next(living, self.replicas[0]), self.method, args)

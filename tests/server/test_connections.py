from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vlcore.server import connections
from vlcore.server.connections import Connections, Uploads, client_address
from vlcore.server.settings import ServerSettings


class FakeConnection:
    def __init__(self, address: str, waits_since: float = 0.0, *, is_waiting: bool = True) -> None:
        self.client: tuple[str, int] | None = (address, 1)
        self.waits_since = waits_since
        self.is_waiting = is_waiting
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def bounds(**options: Any) -> Connections:
    return Connections(ServerSettings(model_name="tiny", **options))


def test_the_longest_waiting_connection_of_an_address_makes_room() -> None:
    admission = bounds(max_connections_per_client=2)
    older, newer = FakeConnection("a", 1.0), FakeConnection("a", 2.0)
    other = FakeConnection("b", 0.0)
    assert all(map(admission.admit, (newer, older, other)))
    assert admission.admit(FakeConnection("a", 3.0))
    assert (older.is_closed, newer.is_closed, other.is_closed) == (True, False, False)
    assert admission.num_admitted == 3


def test_connections_with_complete_requests_are_not_closed() -> None:
    admission = bounds(max_connections_per_client=1)
    running = FakeConnection("a", is_waiting=False)
    assert admission.admit(running)
    assert not admission.admit(FakeConnection("a"))
    assert not running.is_closed
    admission.remove(running)
    assert admission.admit(FakeConnection("a"))


def test_the_bound_of_all_connections() -> None:
    admission = bounds(max_connections=2)
    assert all(admission.admit(FakeConnection(address)) for address in "ab")
    refused = FakeConnection("c")
    assert not admission.admit(refused)
    assert admission.refuse(refused)
    admission.remove(refused)


def test_refused_connections_are_bounded() -> None:
    admission = bounds()
    assert [admission.refuse(FakeConnection("a")) for _ in range(65)] == [True] * 64 + [False]


def test_fewer_connections_than_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_max_open_files", lambda: 300)
    admission = bounds()
    admitted = [admission.admit(FakeConnection("a")) for _ in range(50)]
    assert admitted == [True] * 44 + [False] * 6


def test_a_client_has_at_most_half_of_the_upload_slots() -> None:
    async def count() -> list[int]:
        uploads = Uploads(4)
        held: list[str] = []
        ends = asyncio.Event()

        async def upload(client: str) -> None:
            async with uploads.slot(client):
                held.append(client)
                await ends.wait()

        tasks = [asyncio.create_task(upload(client)) for client in "aaaabb"]
        for _ in range(10):
            await asyncio.sleep(0)
        counts = [held.count("a"), held.count("b")]
        ends.set()
        await asyncio.gather(*tasks)
        assert not uploads._client_slots
        return counts

    assert asyncio.run(count()) == [2, 2]


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("10.0.0.1", 5), "10.0.0.1"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2"),
        (("::1", 5), "::1"),
        (("::ffff:10.0.0.1", 5), "::ffff:10.0.0.1"),
        (None, ""),
    ],
)
def test_the_address_of_a_client(client: Any, expected: str) -> None:
    assert client_address(client) == expected

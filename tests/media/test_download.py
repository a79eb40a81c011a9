"""Downloads as a server makes them, from a server here that stands for the public net."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
import trustme
from waits import TIMEOUT_S, until

from vlcore.errors import ImageError, ImageLimitError
from vlcore.media import ssrf as addresses
from vlcore.media.download import download, tls_context
from vlcore.media.policy import ImageAccess, ImageLimits

OPEN = ImageAccess(allowed_networks=["127.0.0.1/32"])
"""The server of these tests stands for a public one; the metadata address stays refused."""


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\n\r\nsecret"
RESPONSES = {
    "/picture": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
    "/claims": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    "/gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    + gzip.compress(b"0" * 10_000_000),
}
"""What the server sends at once, by path."""


class Server:
    """Answers each connection with what a function of the request's head sends."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.heads: list[str] = []
        self.gone = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                if self._tls is not None:
                    try:
                        connection = self._tls.wrap_socket(connection, server_side=True)
                    except OSError:  # the client does not trust it
                        connection.close()
                        continue
                threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = connection.recv(65536).decode("latin-1")
            self.heads.append(head)
            path = head.split(" ")[1]
            if path.startswith("/to/"):
                cookie = b"Set-Cookie: a=b\r\n"
                connection.sendall(
                    b"HTTP/1.1 302 Found\r\n" + cookie + f"Location: {path[4:]}\r\n\r\n".encode()
                )
            elif path == "/endless":
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    connection.sendall(b"x" * 1000)
            elif path == "/trickle":
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.02)
            elif path == "/hang":
                connection.settimeout(TIMEOUT_S)
                if not connection.recv(1):
                    self.gone.set()
            else:
                connection.sendall(RESPONSES.get(path, NOT_FOUND))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.close()


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every name is this machine at the first look-up, and the metadata service afterwards."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        if host == "169.254.169.254" or asked.count(host) > 1:
            return ["169.254.169.254"]
        return ["127.0.0.1"]

    monkeypatch.setattr(addresses, "resolve", resolve)
    return asked


def fetch(
    server: Server, path: str, limits: ImageLimits | None = None, access: ImageAccess = OPEN
) -> bytes:
    url = f"http://a.example:{server.port}{path}"
    return asyncio.run(download(url, "'it'", limits or ImageLimits(), access))


def test_a_name_is_looked_up_once_and_the_checked_address_is_asked(
    server: Server, lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert fetch(server, "/picture") == b"body"
    assert lookups == ["a.example"]
    assert f"Host: a.example:{server.port}\r\n" in server.heads[0]


def test_the_next_address_is_asked_where_one_does_not_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return [f"127.0.0.{number}" for number in last]

    monkeypatch.setattr(addresses, "resolve", resolve)
    access = ImageAccess(allowed_networks=["127.0.0.0/29"])
    last = [2, 3, 1]
    assert fetch(server, "/picture", access=access) == b"body"
    last = [2, 3, 4, 1]
    with pytest.raises(ImageError, match="could not be fetched: ConnectError"):
        fetch(server, "/picture", access=access)
    last = [1, 9]
    with pytest.raises(ImageError, match="not found or is not allowed"):
        fetch(server, "/picture", access=access)


@pytest.mark.parametrize(("certified", "answer"), [("a.example", b"body"), ("b.example", None)])
def test_a_certificate_must_be_of_the_name_though_an_address_is_asked(
    certified: str, answer: bytes | None, lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    asked: list[str | None] = []
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(certified).configure_cert(serving)
    serving.sni_callback = lambda _, name, __: asked.append(name)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr("vlcore.media.download.tls_context", lambda _: trusting)
    server = Server(serving)
    url = f"https://a.example:{server.port}/picture"
    with closing(server):
        if answer is None:
            with pytest.raises(ImageError, match="could not be fetched: ConnectError"):
                asyncio.run(download(url, "'it'", access=OPEN))
        else:
            assert asyncio.run(download(url, "'it'", access=OPEN)) == answer
            assert f"Host: a.example:{server.port}\r\n" in server.heads[0]
    assert asked == ["a.example"]


def test_certificates_of_authorities_are_read_once_and_trust_nobody_else() -> None:
    context = tls_context(False)
    assert context is tls_context(False)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_a_second_look_up_at_a_redirect_is_checked_too(server: Server, lookups: list[str]) -> None:
    with pytest.raises(ImageError, match="not found or is not allowed"):
        fetch(server, "/to//picture")
    assert lookups == ["a.example", "a.example"]
    assert len(server.heads) == 1


def test_a_redirect_to_another_host_carries_no_cookie(server: Server, lookups: list[str]) -> None:
    assert fetch(server, f"/to/http://b.example:{server.port}/picture") == b"body"
    assert "cookie" not in server.heads[1].lower()


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "ftp://b.example/",
        "http://user:word@b.example/",
        "gopher://b.example/",
        "http://",
        "http://[::1",
    ],
)
def test_a_redirect_to_what_is_not_allowed_is_refused(
    server: Server, lookups: list[str], target: str
) -> None:
    with pytest.raises(ImageError, match="could not be fetched"):
        fetch(server, f"/to/{target}")
    assert len(server.heads) == 1


def test_redirects_end(server: Server, lookups: list[str]) -> None:
    far = f"http://c.example:{server.port}/picture"
    with pytest.raises(ImageLimitError, match="max_redirects=1"):
        fetch(server, f"/to/http://b.example:{server.port}/to/{far}", ImageLimits(max_redirects=1))


@pytest.mark.parametrize("path", ["/endless", "/claims"])
def test_a_body_ends_at_the_limit(server: Server, lookups: list[str], path: str) -> None:
    with pytest.raises(ImageLimitError, match="max_bytes=5000"):
        fetch(server, path, ImageLimits(max_bytes=5000))


def test_compression_is_not_undone(server: Server, lookups: list[str]) -> None:
    with pytest.raises(ImageError, match="compressed it unasked"):
        fetch(server, "/gzip")


def test_a_status_is_reported_without_the_body(server: Server, lookups: list[str]) -> None:
    with pytest.raises(ImageError, match=r"status 404$"):
        fetch(server, "/absent")


def test_a_trickle_of_header_bytes_ends_in_time(server: Server, lookups: list[str]) -> None:
    """Without the limit it would not end at all."""
    with pytest.raises(ImageLimitError, match=r"took longer than timeout_s=0\.2"):
        fetch(server, "/trickle", ImageLimits(timeout_s=0.2))


def test_cancelling_closes_the_connection(server: Server, lookups: list[str]) -> None:
    async def body() -> None:
        url = f"http://a.example:{server.port}/hang"
        task = asyncio.create_task(download(url, "'it'", ImageLimits(), OPEN))
        await until(lambda: server.heads)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(body())
    assert server.gone.wait(TIMEOUT_S)


def test_a_resolver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        done.wait(TIMEOUT_S)
        return []

    monkeypatch.setattr("vlcore.media.ssrf.socket.getaddrinfo", getaddrinfo)
    with pytest.raises(ImageLimitError, match=r"connect_timeout_s=0\.1"):
        asyncio.run(
            download("http://a.example/", "'it'", ImageLimits(connect_timeout_s=0.1), ImageAccess())
        )
    done.set()


@pytest.mark.parametrize(
    ("access", "message"),
    [
        (ImageAccess(), "not allowed"),
        (ImageAccess(urls=False), "URLs are not allowed here"),
        (ImageAccess(allowed_networks=["127.0.0.1/32"], allowed_ports=[443]), "port"),
    ],
)
def test_what_is_refused_is_never_asked(
    server: Server, lookups: list[str], access: ImageAccess, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(server, "/picture", access=access)
    assert server.heads == []

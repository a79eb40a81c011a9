"""Downloads with the restrictions of a server, from a local server in place of a public one."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import trustme
from loop_clock import LoopClock
from waits import TIMEOUT_S, until, wait_for

import vlcore
from vlcore._utils.fair_queue import current_client
from vlcore.errors import ImageDownloadError, ImageError, ImageLimitError
from vlcore.media import ssrf as addresses
from vlcore.media.download import download, tls_context
from vlcore.media.policy import ImageAccess, ImageLimits

OPEN = ImageAccess(allowed_networks=["127.0.0.1/32"])
"""Allows the local server of these tests; the metadata address stays refused."""


GZIP_HEAD = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\n\r\nsecret"
RESPONSES = {
    "/image": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
    "/claims": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    "/203": b"HTTP/1.1 203 Non-Authoritative Information\r\nContent-Length: 4\r\n\r\nbody",
    "/gzip": GZIP_HEAD + gzip.compress(b"0" * 10_000_000),
    "/x-gzip": GZIP_HEAD.replace(b"gzip", b"X-GZIP") + gzip.compress(b"body"),
    "/half-gzip": GZIP_HEAD + gzip.compress(b"0" * 10_000)[:-9],
    "/no-gzip": GZIP_HEAD + b"body",
    "/br": GZIP_HEAD.replace(b"gzip", b"br") + b"body",
}
"""Complete responses of the server, by path."""


class Server:
    """Answers each connection depending on the path of the request."""

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
    """Every name resolves to this machine at first, and to the metadata service afterwards."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        if host == "169.254.169.254" or asked.count(host) > 1:
            # A host that is refused takes the whole time limit.
            clock = LoopClock(asyncio.get_running_loop())
            clock.advance(ImageLimits().connect_timeout_s)
            return ["169.254.169.254"]
        return ["127.0.0.1"]

    monkeypatch.setattr(addresses, "resolve", resolve)
    return asked


def fetch(
    server: Server, path: str, limits: ImageLimits | None = None, access: ImageAccess = OPEN
) -> bytes:
    url = f"http://a.example:{server.port}{path}"
    return asyncio.run(download(url, "'it'", limits or ImageLimits(), access))


REFUSED_SOON = ImageLimits(connect_timeout_s=0.01)
"""A host that is refused takes the whole time limit."""


def test_a_name_is_resolved_once_and_the_checked_address_is_contacted(
    server: Server, lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert fetch(server, "/image") == b"body"
    assert lookups == ["a.example"]
    assert f"Host: a.example:{server.port}\r\n" in server.heads[0]


def test_the_next_address_is_tried_if_one_does_not_respond(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return [f"127.0.0.{number}" for number in last]

    monkeypatch.setattr(addresses, "resolve", resolve)
    access = ImageAccess(allowed_networks=["127.0.0.0/29"])
    last = [2, 3, 1]
    assert fetch(server, "/image", access=access) == b"body"
    last = [2, 3, 4, 1]
    with pytest.raises(ImageError, match="could not be fetched: ConnectError"):
        fetch(server, "/image", access=access)
    last = [1, 9]
    with pytest.raises(ImageError, match="not found or is not allowed"):
        fetch(server, "/image", REFUSED_SOON, access)


@pytest.mark.parametrize(("certified", "answer"), [("a.example", b"body"), ("b.example", None)])
def test_a_certificate_is_verified_against_the_name(
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
    url = f"https://a.example:{server.port}/image"
    with closing(server):
        if answer is None:
            with pytest.raises(ImageError, match="could not be fetched: ConnectError"):
                asyncio.run(download(url, "'it'", access=OPEN))
        else:
            assert asyncio.run(download(url, "'it'", access=OPEN)) == answer
            assert f"Host: a.example:{server.port}\r\n" in server.heads[0]
    assert asked == ["a.example"]


def test_certificates_of_authorities_are_loaded_once() -> None:
    context = tls_context(False)
    assert context is tls_context(False)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_the_address_after_a_redirect_is_checked(server: Server, lookups: list[str]) -> None:
    with pytest.raises(ImageError, match="not found or is not allowed"):
        fetch(server, "/to//image")
    assert lookups == ["a.example", "a.example"]
    assert len(server.heads) == 1


def test_a_redirect_to_another_host_carries_no_cookie(server: Server, lookups: list[str]) -> None:
    assert fetch(server, f"/to/http://b.example:{server.port}/image") == b"body"
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


def test_the_number_of_redirects_is_limited(server: Server, lookups: list[str]) -> None:
    far = f"http://c.example:{server.port}/image"
    with pytest.raises(ImageDownloadError, match="max_redirects=1"):
        fetch(server, f"/to/http://b.example:{server.port}/to/{far}", ImageLimits(max_redirects=1))


@pytest.mark.parametrize("path", ["/endless", "/claims"])
def test_a_body_ends_at_the_limit(server: Server, lookups: list[str], path: str) -> None:
    with pytest.raises(ImageLimitError, match="max_bytes=5000"):
        fetch(server, path, ImageLimits(max_bytes=5000))


def test_gzip_of_stored_objects_is_decompressed(server: Server, lookups: list[str]) -> None:
    assert fetch(server, "/gzip") == b"0" * 10_000_000
    assert "accept-encoding: identity" in server.heads[0].lower()


def test_the_old_name_of_gzip_is_known(server: Server, lookups: list[str]) -> None:
    assert fetch(server, "/x-gzip") == b"body"


def test_gzip_is_decompressed_within_the_limit_of_bytes(
    server: Server, lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    decompressobj = zlib.decompressobj

    def spied(*, wbits: int) -> Any:
        decompressor = decompressobj(wbits=wbits)

        class Spy:
            eof = False

            def decompress(self, chunk: bytes, max_length: int) -> bytes:
                inflated = decompressor.decompress(chunk, max_length)
                sizes.append(len(inflated))
                return inflated

        return Spy()

    monkeypatch.setattr("vlcore.media.download.zlib.decompressobj", spied)
    with pytest.raises(ImageLimitError, match="max_bytes=9999"):
        fetch(server, "/gzip", ImageLimits(max_bytes=9999))
    assert sum(sizes) == 10_000


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/half-gzip", "gzip compression ends early"),
        ("/no-gzip", "gzip compression is damaged"),
        ("/br", "Content-Encoding 'br'"),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_an_error(
    server: Server, lookups: list[str], path: str, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(server, path)


def test_status_203_is_accepted(server: Server, lookups: list[str]) -> None:
    assert fetch(server, "/203") == b"body"


def test_the_user_agent_names_a_contact(server: Server, lookups: list[str]) -> None:
    fetch(server, "/image")
    agent = f"vlcore/{vlcore.__version__} (+https://github.com/vlcore/vlcore)"
    assert f"user-agent: {agent}".lower() in server.heads[0].lower()


@pytest.mark.parametrize(
    "found", [[], ["10.0.0.1"], ["93.184.216.34", "127.0.0.1"], OSError("no such host"), None]
)
def test_a_host_that_is_refused_cannot_be_distinguished_from_an_absent_one(
    found: list[str] | OSError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the message nor the time shows which it is, nor that the resolver hangs (None)."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        if found is None:
            await asyncio.Event().wait()
        if isinstance(found, OSError):
            raise found
        return found or []

    async def body() -> str:
        clock = LoopClock(asyncio.get_running_loop())
        limits = ImageLimits(connect_timeout_s=5000, timeout_s=20_000)
        task = asyncio.create_task(download("http://a.example/", "'it'", limits, ImageAccess()))
        await until(lambda: asked)
        clock.advance(4000)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        clock.advance(1000)
        with pytest.raises(ImageDownloadError) as caught:
            await task
        return str(caught.value)

    monkeypatch.setattr(addresses, "resolve", resolve)
    message = "'it' could not be fetched: its host was not found or is not allowed"
    assert asyncio.run(body()) == message


def test_an_address_is_refused_at_once() -> None:
    """Nothing is resolved, and the text of the URL alone decides."""
    limits = ImageLimits(connect_timeout_s=10 * TIMEOUT_S, timeout_s=10 * TIMEOUT_S)
    for host in ("10.0.0.1", "[::1]"):
        with pytest.raises(ImageDownloadError, match="not found or is not allowed"):
            asyncio.run(download(f"http://{host}/", "'it'", limits, ImageAccess()))


def test_a_status_is_reported_without_the_body(server: Server, lookups: list[str]) -> None:
    with pytest.raises(ImageError, match=r"status 404$"):
        fetch(server, "/absent")


def test_a_trickle_of_header_bytes_ends_in_time(server: Server, lookups: list[str]) -> None:
    """Without the limit it would never end."""
    with pytest.raises(ImageDownloadError, match=r"took longer than timeout_s=0\.2"):
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


def test_a_resolver_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        done.wait(TIMEOUT_S)
        return []

    monkeypatch.setattr("vlcore.media.ssrf.socket.getaddrinfo", getaddrinfo)
    with pytest.raises(ImageDownloadError, match="its host was not found"):
        asyncio.run(
            download("http://a.example/", "'it'", ImageLimits(connect_timeout_s=0.1), ImageAccess())
        )
    done.set()


def test_lookups_that_hang_do_not_delay_other_clients(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    getaddrinfo = socket.getaddrinfo

    def hanging(host: str, *args: Any, **options: Any) -> Any:
        if host == "hangs.example":
            done.wait(TIMEOUT_S)
            raise OSError("no such host")
        return getaddrinfo("127.0.0.1", *args, **options)

    async def get(client: str, host: str) -> bytes:
        current_client.set(client)
        url = f"http://{host}:{server.port}/image"
        return await download(url, "'it'", ImageLimits(connect_timeout_s=TIMEOUT_S), OPEN)

    async def body() -> bytes:
        held = [asyncio.create_task(get("one", "hangs.example")) for _ in range(100)]
        await until(lambda: addresses._lookups["one"] == addresses._MAX_LOOKUPS_OF_CLIENT)
        response = await get("another", "a.example")
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        done.set()
        return response

    monkeypatch.setattr("vlcore.media.ssrf.socket.getaddrinfo", hanging)
    assert asyncio.run(body()) == b"body"
    wait_for(lambda: not addresses._lookups)


@pytest.mark.parametrize(
    ("access", "message"),
    [
        (ImageAccess(), "not allowed"),
        (ImageAccess(urls=False), "URLs are not allowed here"),
        (ImageAccess(allowed_networks=["127.0.0.1/32"], allowed_ports=[443]), "port"),
    ],
)
def test_a_refused_url_is_never_requested(
    server: Server, lookups: list[str], access: ImageAccess, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(server, "/image", REFUSED_SOON, access)
    assert server.heads == []

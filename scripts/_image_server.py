"""A server of images for the soak: one path has a good image, the others are traps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

TRAPS = (
    "to-loopback",
    "to-metadata",
    "to-file",
    "redirect-loop",
    "silent",
    "trickle",
    "endless",
    "truncated",
    "html",
)


class ImageServer:
    """Serves one image of a directory, and misbehaves on other paths.

    Args:
        directory: The directory of the image.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = 0
        self.num_caught = 0
        """Number of requests that followed a redirect to this machine, which is not allowed."""

    def url(self, name: str) -> str:
        """Return a URL whose host is a name, not an address."""
        return f"http://localhost:{self._port}/{name}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen on every address of ``localhost``."""
        async with AsyncExitStack() as stack:
            server = await asyncio.start_server(self._respond, "127.0.0.1", 0)
            await stack.enter_async_context(server)
            self._port = server.sockets[0].getsockname()[1]
            with suppress(OSError):  # the machine has no IPv6
                server = await asyncio.start_server(self._respond, "::1", self._port)
                await stack.enter_async_context(server)
            yield

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await self._send(head.split(b" ")[1].decode().lstrip("/"), writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has disconnected
        except asyncio.CancelledError:
            pass  # the soak is over: asyncio would log a cancelled handler as a fault
        finally:
            writer.close()

    async def _send(self, name: str, writer: asyncio.StreamWriter) -> None:
        targets = {
            "to-loopback": f"http://127.0.0.1:{self._port}/secret",
            "to-metadata": "http://169.254.169.254/latest/meta-data/",
            "to-file": "file:///etc/passwd",
            "redirect-loop": self.url("redirect-loop"),
        }
        if name in targets:
            writer.write(_head("302 Found", location=targets[name], content_length="0"))
        elif name == "secret":
            self.num_caught += 1
        elif name == "silent":
            await asyncio.sleep(60)
        elif name in ("trickle", "endless"):
            writer.write(_head("200 OK", content_type="image/png"))
            while True:
                writer.write(bytes(1) if name == "trickle" else bytes(2**16))
                await writer.drain()
                await asyncio.sleep(0.1 if name == "trickle" else 0)
        elif name == "html":
            writer.write(_head("200 OK", content_type="text/html") + b"<p>")
        else:
            content = (self._directory / "tower.png").read_bytes()
            length = str(len(content))
            writer.write(_head("200 OK", content_type="image/png", content_length=length))
            writer.write(content if name == "tower.png" else content[:100])


def _head(status: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()

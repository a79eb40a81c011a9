"""Where pictures may come from: what a server lets its clients name."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

from vlcore.errors import ImageError, ImageLimitError, OptionError

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True)
class ImageAccess:
    """Which sources a picture may come from.

    As it stands, it is safe for sources that a stranger names: data URLs, and http(s) URLs whose
    hosts have globally routable addresses only; no files. Pictures that come as bytes or as PIL
    images are always allowed.

    Raises:
        OptionError: a setting is not of its kind.
    """

    trusts_caller: bool = False
    """Every path and URL is allowed, as for the user of a Python program; the other settings then
    say nothing."""
    urls: bool = True
    """Whether http(s) URLs are allowed at all."""
    allowed_hosts: Sequence[str] = ()
    """Host names whose addresses may be any, such as ``images.internal``; subdomains are others."""
    allowed_networks: Sequence[str] = ()
    """Networks beside the global ones, such as ``10.1.0.0/16``."""
    allowed_ports: Sequence[int] | None = None
    """``None`` for any."""
    allowed_directories: Sequence[str | Path] = ()
    """Directories whose files may be read, by path or ``file:`` URL."""

    def __post_init__(self) -> None:
        for name in ("allowed_hosts", "allowed_networks", "allowed_directories", "allowed_ports"):
            value = getattr(self, name)
            if isinstance(value, str | bytes | Path) or not isinstance(value, Sequence | None):
                raise OptionError(f"{name} must be a list; it is {value!r}")
            if value is None and name != "allowed_ports":
                raise OptionError(f"{name} must be a list; it is None")
        for network in self.allowed_networks:
            try:
                ip_network(network)
            except ValueError as error:
                raise OptionError(
                    f"allowed_networks must hold networks such as '10.1.0.0/16': {error}"
                ) from error

    @property
    def networks(self) -> list[IpNetwork]:
        """The allowed networks, parsed."""
        return [ip_network(network) for network in self.allowed_networks]

    def allows_host(self, host: str) -> bool:
        """Say whether a host's addresses may be any."""
        host = host.lower().removesuffix(".")
        return host in {one.lower().removesuffix(".") for one in self.allowed_hosts}


TRUSTING = ImageAccess(trusts_caller=True)


def open_file(path: Path, name: str, access: ImageAccess) -> int:
    """Open a file for reading where that is allowed; what is checked is the open file itself.

    Returns:
        A descriptor, for the caller to close.

    Raises:
        ImageError: it is not allowed.
        OSError: it cannot be opened.
    """
    if access.trusts_caller:
        return os.open(path.expanduser(), os.O_RDONLY | os.O_CLOEXEC)
    refused = ImageError(f"{name} is not in a directory that pictures may be read from")
    for directory in access.allowed_directories:
        root = Path(directory).expanduser().resolve()
        try:
            relative = Path(os.path.abspath(path)).resolve(strict=True).relative_to(root)
        except (OSError, ValueError, RuntimeError):
            continue
        if ".." in path.parts:
            raise refused
        try:
            return _open_below(root, relative)
        except OSError as error:
            raise refused from error
    raise refused


def _open_below(root: Path, relative: Path) -> int:
    """Open step by step without following a link, so that nothing can be swapped on the way."""
    base = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    current = os.open(root, base | os.O_DIRECTORY)
    try:
        for part in relative.parts[:-1]:
            inner = os.open(part, base | os.O_DIRECTORY, dir_fd=current)
            os.close(current)
            current = inner
        # Opening a pipe would wait for its writer.
        opened = os.open(relative.name, base | os.O_NONBLOCK, dir_fd=current)
    finally:
        os.close(current)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "not a regular file")
    return opened


FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read; no reader of another one ever sees a file."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost, and all pictures of a request.

    Raises:
        OptionError: a limit is not positive, or a format is unknown.
    """

    max_pixels: int = 89_478_485
    """Width times height, checked from the header before decoding. Pillow has a limit of its
    own at twice ``PIL.Image.MAX_IMAGE_PIXELS``, which holds as well."""
    max_bytes: int = 64 * 1024**2
    """Size of the file or download."""
    connect_timeout_s: float = 10.0
    """To find the server of an http(s) URL, to reach it, and between two pieces of its answer."""
    timeout_s: float = 60.0
    """For a whole download, redirects included."""
    max_redirects: int = 5
    max_images: int = 1000
    """In one request."""
    max_decoded_bytes: int = 4 * 1024**3
    """Of all pictures of a request together, as RGB, from their headers before decoding."""
    formats: tuple[str, ...] = FORMATS
    """Those that are opened."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "formats":
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not value >= 0 or (value == 0 and name != "max_redirects"):
                raise OptionError(f"{name} must be a positive number; it is {value!r}")
        # A text is a sequence of letters, none of which is a format.
        if not self.formats or set(self.formats) - set(FORMATS):
            raise OptionError(
                f"formats must be some of {', '.join(FORMATS)}; it is {self.formats!r}"
            )


DEFAULT_LIMITS = ImageLimits()


@dataclass
class DecodedBudget:
    """What the pictures of one request may still take when they are decoded."""

    limits: ImageLimits
    _taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, width: int, height: int, name: str) -> None:
        """Count a picture before it is decoded.

        Raises:
            ImageLimitError: it would be too much for the request.
        """
        with self._lock:
            self._taken += width * height * 3
            if self._taken <= self.limits.max_decoded_bytes:
                return
        raise ImageLimitError(
            f"{name} is {width} x {height}, and the pictures of its request together are more "
            f"than max_decoded_bytes={self.limits.max_decoded_bytes} of vlcore.ImageLimits"
        )

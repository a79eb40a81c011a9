"""The sources from which images may be loaded, and the limits of an image and a request."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import ClassVar

from vlcore.errors import OptionError
from vlcore.media.kind import IMAGE, FileLimits, MediaKind

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True)
class ImageAccess:
    """The sources from which images and videos may be loaded.

    The defaults are safe for sources from untrusted clients: data URLs, and http(s) URLs of hosts
    with globally routable addresses only, but no files. Images and videos that are given as bytes
    or as PIL images are always allowed.

    Raises:
        OptionError: a setting has the wrong type.
    """

    trusts_caller: bool = False
    """Whether every path and URL is allowed, as for the user of a Python program. The other
    settings then have no effect."""
    urls: bool = True
    """Whether http(s) URLs are allowed."""
    allowed_hosts: Sequence[str] = ()
    """Host names that may have any address, such as ``images.internal``, without subdomains."""
    allowed_networks: Sequence[str] = ()
    """Networks that are allowed in addition to global addresses, such as ``10.1.0.0/16``."""
    allowed_ports: Sequence[int] | None = None
    """Allowed ports; ``None`` for any port."""
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
        """Return whether a host may have any address."""
        host = host.lower().removesuffix(".")
        return host in {allowed.lower().removesuffix(".") for allowed in self.allowed_hosts}


TRUSTING = ImageAccess(trusts_caller=True)


# Windows lacks some of these flags, and would convert line ends without O_BINARY.
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_file(path: Path, name: str, access: ImageAccess, kind: MediaKind = IMAGE) -> int:
    """Open a file for reading if that is allowed. The check applies to the opened file itself.

    Returns:
        A file descriptor, which the caller must close.

    Raises:
        ImageError: the file is not in an allowed directory; the error is that of the kind.
        OSError: the file cannot be opened.
    """
    if access.trusts_caller:
        return os.open(path.expanduser(), _READ_FLAGS)
    message = f"{name} is not in a directory from which files may be read"
    for directory in access.allowed_directories:
        root = Path(directory).expanduser().resolve()
        try:
            relative = Path(os.path.abspath(path)).resolve(strict=True).relative_to(root)
        except (OSError, ValueError, RuntimeError):
            continue
        if ".." in path.parts:
            raise kind.error(message)
        try:
            return _open_below(root, relative) if _HAS_DIR_FD else _open_checked(root, relative)
        except OSError as error:
            raise kind.error(message) from error
    raise kind.error(message)


def _open_below(root: Path, relative: Path) -> int:
    """Open directory by directory without following links, so that none can be exchanged."""
    base = _READ_FLAGS | os.O_NOFOLLOW
    current = os.open(root, base | os.O_DIRECTORY)
    try:
        for part in relative.parts[:-1]:
            inner = os.open(part, base | os.O_DIRECTORY, dir_fd=current)
            os.close(current)
            current = inner
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        opened = os.open(relative.name, base | os.O_NONBLOCK, dir_fd=current)
    finally:
        os.close(current)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "not a regular file")
    return opened


def _open_checked(root: Path, relative: Path) -> int:
    """Open a file on a system without directory descriptors, and check its location afterwards."""
    path = root / relative
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    opened = os.open(path, _READ_FLAGS)
    try:
        is_same = os.path.samestat(os.fstat(opened), path.lstat())
        if path.resolve(strict=True) != path or not is_same:
            raise OSError(errno.ELOOP, "a link was exchanged while the file was opened")
    except BaseException:
        os.close(opened)
        raise
    return opened


_HAS_DIR_FD = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The supported image formats; no other decoder of Pillow is used. HEIF needs ``vlcore[heif]``."""


@dataclass(frozen=True)
class ImageLimits:
    """The limits of an image, and of all images of a request.

    Each is a maximum; an image that exceeds one raises :class:`ImageLimitError`, as far as possible
    before it is downloaded or decoded.

    Raises:
        OptionError: a limit is not positive, or a format is unknown.
    """

    kind: ClassVar[MediaKind] = IMAGE

    max_pixels: int = 89_478_485
    """Width times height, checked in the header before decoding. Pillow's own limit, which is twice
    ``PIL.Image.MAX_IMAGE_PIXELS``, applies too."""
    max_bytes: int = 64 * 1024**2
    """Size of the file or download, in bytes; also after gzip decompression."""
    connect_timeout_s: float = 10.0
    """Time to resolve the host of an http(s) URL, to connect, and between two chunks of a response,
    in seconds. A host that is refused or does not exist takes this long too: the time does not
    disclose which hosts of a network exist."""
    timeout_s: float = 60.0
    """Time for a whole download, including redirects, in seconds."""
    decode_timeout_s: float = 20.0
    """Processor time for decoding an image, in seconds. It is checked whenever the decoder reads
    from the file."""
    max_redirects: int = 5
    """Number of redirects that a download follows; 0 for none."""
    max_images: int = 1000
    """Number of images in one request."""
    max_decoded_bytes: int = 4 * 1024**3
    """Memory of all images of a request as RGB, and of the largest working memory that decoding one
    of them needs, in bytes. It is computed from the headers before decoding."""
    formats: tuple[str, ...] = FORMATS
    """Allowed formats, out of ``AVIF, BMP, GIF, HEIF, JPEG, PNG, PPM, TIFF, WEBP``."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "formats":
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not value >= 0 or (value == 0 and name != "max_redirects"):
                raise OptionError(f"{name} must be a positive number; it is {value!r}")
        # A string is a sequence of letters, none of which is a format.
        if not self.formats or set(self.formats) - set(FORMATS):
            raise OptionError(
                f"formats must be some of {', '.join(FORMATS)}; it is {self.formats!r}"
            )


DEFAULT_LIMITS = ImageLimits()


@dataclass
class DecodedBudget:
    """The memory that the images or videos of one request may still take when they are decoded."""

    limits: FileLimits
    _num_bytes: int = 0
    _num_extra_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, num_bytes: int, num_extra_bytes: int, size: tuple[int, int], name: str) -> None:
        """Count an image or video before it is decoded.

        Args:
            num_bytes: the memory of the images as RGB.
            num_extra_bytes: the memory that decoding takes in addition. It is freed before the next
                image is decoded, so only the largest such value of a request counts.
            size: width and height of the image, for messages.
            name: the name of the image in messages.

        Raises:
            ImageLimitError: the images of the request would take too much memory.
        """
        with self._lock:
            self._num_bytes += num_bytes
            self._num_extra_bytes = max(self._num_extra_bytes, num_extra_bytes)
            total = self._num_bytes + self._num_extra_bytes
        if total > self.limits.max_decoded_bytes:
            kind = self.limits.kind
            raise kind.limit_error(
                f"{name} is {size[0]} x {size[1]}, and decoding the images and videos of "
                f"its request takes {total} bytes, more than max_decoded_bytes="
                f"{self.limits.max_decoded_bytes} of {kind.limits}"
            )

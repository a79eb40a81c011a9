from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from vlcore.errors import ImageError
from vlcore.media import ssrf as addresses
from vlcore.media.policy import ImageAccess


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_global(text: str) -> None:
    assert addresses.is_global(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.8"),
        *("192.88.99.1", "198.18.0.1", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0"),
        *("fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::"),
        *("2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1"),
        *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2606:4700::1111%1"),
    ],
)
def test_others_are_not(text: str) -> None:
    assert not addresses.is_global(ip_address(text))


def checked(found: list[str], access: ImageAccess, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    async def resolve(host: str, port: int) -> list[str]:
        return found

    monkeypatch.setattr(addresses, "resolve", resolve)
    return asyncio.run(addresses.checked_addresses("a.example", 80, "'it'", access))


def test_one_address_that_is_not_allowed_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(["8.8.8.8"], ImageAccess(), monkeypatch) == ["8.8.8.8"]
    both = checked(["2606:4700::1", "8.8.8.8"], ImageAccess(), monkeypatch)
    assert both == ["8.8.8.8", "2606:4700::1"]
    with pytest.raises(ImageError, match="not allowed"):
        checked(["8.8.8.8", "10.0.0.1"], ImageAccess(), monkeypatch)
    with pytest.raises(ImageError, match="its host was not found"):
        checked([], ImageAccess(), monkeypatch)


def test_hosts_and_networks_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(["10.0.0.1"], ImageAccess(allowed_hosts=["A.example."]), monkeypatch)
    assert checked(["10.0.0.1"], ImageAccess(allowed_networks=["10.0.0.0/30"]), monkeypatch)
    for access in (
        ImageAccess(allowed_hosts=["example"]),
        ImageAccess(allowed_networks=["10.0.0.8/30"]),
    ):
        with pytest.raises(ImageError):
            checked(["10.0.0.1"], access, monkeypatch)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost"])
def test_odd_spellings_of_this_machine_are_refused(host: str) -> None:
    with pytest.raises(ImageError):
        asyncio.run(addresses.checked_addresses(host, 80, "'it'", ImageAccess()))

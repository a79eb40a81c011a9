from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest

import vlcore.server

STATIC = Path(vlcore.server.__file__).with_name("static")
FILES = sorted(path.name for path in STATIC.iterdir() if path.name != "index.html")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_every_file_is_served_under_a_strict_policy(url: str, path: str) -> None:
    response = httpx2.get(url + path)
    assert response.status_code == 200
    directives = response.headers["content-security-policy"].split("; ")
    assert dict(directive.split(" ", 1) for directive in directives) == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"
    expected = "text/html; charset=utf-8" if path == "/" else TYPES[Path(path).suffix]
    assert response.headers["content-type"] == expected
    if path != "/":
        assert response.content == (STATIC / Path(path).name).read_bytes()


def test_the_page_has_no_inline_code_and_loads_nothing_from_elsewhere(url: str) -> None:
    html = httpx2.get(url).text
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", html)
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    links += [
        link
        for path in STATIC.glob("*.js")
        for link in re.findall(r'from "([^"]*)"', path.read_text("utf-8"))
    ]
    assert links
    assert {link.removeprefix("page/").removeprefix("./") for link in links} <= set(FILES)
    for path in STATIC.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text()
        ), path


def test_the_page_contains_the_maximum_body_size(url: str) -> None:
    assert '<meta name="max-body-bytes" content="33554432">' in httpx2.get(url).text


@pytest.mark.parametrize("name", ["../page.py", "..%2fpage.py", "%2e%2e/page.py", "index.html", ""])
def test_no_other_file_is_served(url: str, name: str) -> None:
    response = httpx2.get(f"{url}/page/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_the_page_is_not_part_of_the_openapi_document(url: str) -> None:
    assert not [
        path for path in httpx2.get(f"{url}/openapi.json").json()["paths"] if "page" in path
    ]

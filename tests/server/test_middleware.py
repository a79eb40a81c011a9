"""The checks on host names, keys and media types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from server.conftest import DEMO, running
from server_client import GOOD, GOOD_COMPLETION, post, request, send

import vlcore

ORIGIN = "https://pages.example"


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param("", id="none"),
        pytest.param("Bearer", id="no key"),
        pytest.param("Bearer ", id="an empty key"),
        pytest.param("Bearer third", id="a wrong key"),
        pytest.param("Bearer firs", id="a prefix of a key"),
        pytest.param("Bearer first second", id="two keys"),
        pytest.param("Bearer FIRST", id="in capitals"),
        pytest.param("Basic first", id="a wrong scheme"),
        pytest.param("first", id="no scheme"),
        pytest.param("Bearer sch\xfcssel", id="not ASCII"),
        pytest.param(b"Bearer \xf0\x9f\x94\x91", id="UTF-8"),
        pytest.param("Bearer " + "x" * 10_000, id="a long one"),
    ],
)
def test_no_access_without_a_key(keyed_url: str, authorization: Any) -> None:
    for raw in (
        post(GOOD, {"Authorization": authorization}),
        request("GET", "/v1/models", headers={"Authorization": authorization}),
        request("GET", "/v1/nothing", headers={"Authorization": authorization}),
    ):
        reply = send(keyed_url, raw)
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert "first" not in error["message"]


@pytest.mark.parametrize("authorization", ["Bearer first", "Bearer second", "bearer  first"])
def test_every_key_gives_access(keyed_url: str, authorization: str) -> None:
    reply = send(keyed_url, post(GOOD, {"Authorization": authorization}))
    assert reply.json()["choices"][0]["message"]["content"] == GOOD_COMPLETION


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "//v1/models", "/v1%2fmodels", "/V1/models", "/./v1/models"]
)
def test_no_other_spelling_of_a_path_gives_access(keyed_url: str, path: str) -> None:
    assert send(keyed_url, request("GET", path)).status in (401, 404)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/docs", "/openapi.json"])
def test_paths_that_need_no_key(keyed_url: str, path: str) -> None:
    assert send(keyed_url, request("GET", path)).status == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:23333", "127.0.0.1:1", "[::1]:80"])
def test_host_names_of_the_loopback_are_accepted(url: str, host: str) -> None:
    assert send(url, request("GET", "/health", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:23333", "[::2]", "localhost."]
)
def test_other_host_names_are_refused(url: str, host: str) -> None:
    for path in ("/health", "/docs", "/v1/models", "/metrics"):
        reply = send(url, request("GET", path, headers={"Host": host}))
        assert reply.status == 421
        assert reply.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize(
    "media_type", ["application/json", "Application/JSON; charset=utf-8", "application/json ;x"]
)
def test_spellings_of_the_json_media_type_are_accepted(url: str, media_type: str) -> None:
    assert send(url, post(GOOD, {"Content-Type": media_type})).status == 200


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_media_types_that_html_forms_can_send_are_refused(url: str, media_type: str) -> None:
    reply = send(url, post(GOOD, {"Content-Type": media_type}))
    assert reply.status == 415
    assert "Content-Type: application/json is expected" in reply.json()["error"]["message"]


def test_a_preflight_of_another_origin_is_refused(url: str) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = send(url, request("OPTIONS", "/v1/chat/completions", headers=dict(headers)))
    assert reply.status == 405
    assert not any(name.startswith("access-control") for name in reply.headers)


@pytest.fixture(scope="module")
def proxied_url() -> Iterator[str]:
    """The base URL of a server with keys behind a proxy with a path prefix, for one origin."""
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    options = {"api_keys": ("first",), "root_path": "/sub", "allowed_origins": (ORIGIN + "/",)}
    with running(pipe, **options) as server:
        host, port = server.address
        yield f"http://{host}:{port}"


def test_a_preflight_needs_no_key_and_may_name_any_header(proxied_url: str) -> None:
    headers: dict[str, str | bytes] = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-lang,openai-organization",
    }
    reply = send(proxied_url, request("OPTIONS", "/v1/chat/completions", headers=headers))
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-lang" in reply.headers["access-control-allow-headers"]
    other = request("OPTIONS", "/v1/models", headers=headers | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in send(proxied_url, other).headers


def test_a_refusal_has_its_cors_headers(proxied_url: str) -> None:
    reply = send(proxied_url, post(GOOD, {"Origin": ORIGIN}))
    assert reply.status == 401
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("prefix", ["", "/sub"])
def test_a_proxy_may_keep_or_remove_its_prefix(proxied_url: str, prefix: str) -> None:
    key: dict[str, str | bytes] = {"Authorization": "Bearer first"}
    assert send(proxied_url, request("GET", f"{prefix}/v1/models", headers=key)).status == 200
    assert send(proxied_url, request("GET", f"{prefix}/v1/models")).status == 401
    assert send(proxied_url, request("GET", f"{prefix}/page/page.js")).status == 200
    assert send(proxied_url, request("GET", f"{prefix}/")).status == 200


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/v1/models"])
def test_head_is_get_without_a_body(url: str, path: str) -> None:
    reply, full = send(url, request("HEAD", path)), send(url, request("GET", path))
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-length"] == full.headers["content-length"]
    assert send(url, request("HEAD", "/v1/chat/completions")).status == 405


def test_an_absolute_target_is_checked_like_a_path(keyed_url: str) -> None:
    assert send(keyed_url, request("GET", "http://localhost/health")).status == 200
    assert send(keyed_url, request("GET", "http://localhost/v1/models")).status == 401
    assert send(keyed_url, request("GET", "http://evil.example/health")).status == 421


@pytest.mark.parametrize("host", ["127.1", "LOCALHOST", "0x7f000001"])
def test_every_spelling_of_the_loopback_checks_the_host(host: str) -> None:
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    with running(pipe, host=host) as server:
        address, port = server.address
        reply = send(
            f"http://{address}:{port}", request("GET", "/health", headers={"Host": "evil.example"})
        )
    assert reply.status == 421

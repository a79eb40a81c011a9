"""The checks on host names, keys and media types."""

from __future__ import annotations

from typing import Any

import pytest
from server_client import GOOD, GOOD_COMPLETION, post, request, send


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

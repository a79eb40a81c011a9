"""The application's routes, and its OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

import pytest
from server_client import GOOD, post, request, send
from waits import wait_for


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    return send(url, request("GET", "/openapi.json")).json()


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_of_the_document_resolves(document: Any) -> None:
    found = references(document)
    assert "#/components/schemas/ChatRequest" in found
    for reference in found:
        target = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert found == known


def test_the_document_describes_each_path(document: Any) -> None:
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/models", "/v1/models/{name}", "/health", "/ready", "/metrics",
    }  # fmt: skip
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["description"]
            assert {"200", "421", "431"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
            assert "security" not in operation
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name


def test_the_document_describes_the_keys_if_there_are_any(keyed_url: str) -> None:
    document = send(keyed_url, request("GET", "/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes == {"key": {"type": "http", "scheme": "bearer"}}
    secured = {
        path
        for path, operations in document["paths"].items()
        if all(operation.get("security") == [{"key": []}] for operation in operations.values())
    }
    assert secured == {"/v1/chat/completions", "/v1/models", "/v1/models/{name}"}


def test_docs_load_nothing_from_elsewhere_and_run_no_script(url: str) -> None:
    reply = send(url, request("GET", "/docs"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    page = reply.body.decode()
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)
    for fragment in ("POST /v1/chat/completions", "repetition_penalty", "ErrorResponse"):
        assert fragment in page
    assert set(re.findall(r'href="#(\w+)"', page)) <= set(re.findall(r'id="(\w+)"', page))


def test_health_and_readiness(url: str) -> None:
    assert send(url, request("GET", "/health")).json() == {"status": "ok"}
    assert send(url, request("GET", "/ready")).json() == {"status": "ready"}


def test_metrics_are_counted(url: str) -> None:
    def counts() -> dict[str, float]:
        reply = send(url, request("GET", "/metrics"))
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = (line for line in reply.body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    before = counts()
    send(url, post(GOOD))
    send(url, post(b"{"))

    def increase(name: str) -> float:
        return counts().get(name, 0) - before.get(name, 0)

    # A request is counted after its client has received the response.
    wait_for(lambda: increase('vlcore_requests_total{outcome="ok"}') == 1)
    wait_for(lambda: increase('vlcore_requests_total{outcome="invalid_json"}') == 1)
    assert increase('vlcore_tokens_total{kind="image"}') == 64
    assert increase("vlcore_images_total") == 1


def test_no_response_names_the_server_software(url: str) -> None:
    reply = send(url, request("GET", "/health"))
    assert "server" not in reply.headers
    assert reply.headers["x-content-type-options"] == "nosniff"

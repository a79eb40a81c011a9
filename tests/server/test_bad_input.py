"""Hostile and broken requests over real HTTP: each has its status, code and message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server_client import (
    GOOD,
    GOOD_COMPLETION,
    Reply,
    chat,
    image_part,
    post,
    request,
    send,
    text_part,
)

TEXT = text_part("What is this?")


def message(role: str, *content: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": list(content)}]


def url_part(url: Any, **options: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url} | options}


def nested(depth: int) -> bytes:
    return b'{"model":"tiny","messages":' + b"[" * depth + b"]" * depth + b"}"


def with_value(name: str, json_text: str) -> bytes:
    return json.dumps(chat(TEXT)).encode()[:-1] + f', "{name}": {json_text}}}'.encode()


def schema_levels(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


JSON = [
    ("malformed", b'{"model": "tiny",', "invalid_json", "not JSON: EOF"),
    ("invalid utf-8", b'{"model": "\xff\xfe"}', "invalid_json", "not JSON"),
    ("empty", b"", "invalid_json", "not JSON: EOF"),
    ("a list", b"[]", "invalid_value", "object"),
    ("a string", b'"hello"', "invalid_value", "object"),
    ("null", b"null", "invalid_value", "object"),
    ("two documents", b"{}{}", "invalid_json", "trailing"),
    ("deep nesting", nested(4_000), "invalid_json", "recursion limit"),
    ("some nesting", nested(50), "invalid_value", "messages.0"),
    ("a schema of a thousand levels",
     with_value("guided_json", '{"items":' * 1000 + "{}" + "}" * 1000), "invalid_json",
     "recursion limit"),
    ("lone surrogate", with_value("user", r'"\ud800"'), "invalid_json", "hex escape"),
    ("NaN", with_value("temperature", "NaN"), "invalid_value", "temperature"),
    ("Infinity", with_value("top_p", "Infinity"), "invalid_value", "top_p"),
    ("1e999", with_value("repetition_penalty", "1e999"), "invalid_value", "repetition_penalty"),
    ("many digits", with_value("max_tokens", "9" * 5000), "invalid_json", "out of range"),
    ("a string as a number", with_value("n", '"many"'), "invalid_value", "n: "),
    ("a number as a boolean", with_value("stream", "17"), "invalid_value", "stream: "),
]  # fmt: skip
BODIES = [
    ("nothing", {}, "missing_parameter", "model: Field required"),
    ("no messages", {"model": "tiny"}, "missing_parameter", "messages: Field required"),
    ("empty messages", chat(messages=[]), "invalid_value", "messages: List should have at least 1"),
    ("messages no list", chat(messages="Hi"), "invalid_value", "messages: "),
    ("unknown role", chat(messages=message("robot", TEXT)), "invalid_value", "messages.0.role: "),
    ("no content", chat(messages=[{"role": "user"}]), "missing_parameter", "messages.0.content: "),
    (
        "content a number",
        chat(messages=[{"role": "user", "content": 3}]),
        "invalid_value",
        "messages.0.content: a string or a list of parts is expected",
    ),
    (
        "content null",
        chat(messages=[{"role": "user", "content": None}]),
        "missing_parameter",
        "messages.0.content: Field required",
    ),
    (
        "unknown part",
        chat({"type": "input_audio", "input_audio": {}}),
        "invalid_value",
        "messages.0.content.0: ",
    ),
    (
        "video without url",
        chat({"type": "video_url", "video_url": {}}),
        "missing_parameter",
        "messages.0.content.0.video_url.url: ",
    ),
    (
        "video for a model of images",
        chat({"type": "video_url", "video_url": {"url": "https://example.org/clip.mp4"}}, TEXT),
        "invalid_video",
        "takes images only",
    ),
    ("part without type", chat({"text": "Hi"}), "invalid_value", "messages.0.content.0: "),
    ("text a number", chat(text_part(3)), "invalid_value", "messages.0.content.0.text: "),  # type: ignore[arg-type]
    ("number as url", chat(url_part(3)), "invalid_value", "messages.0.content.0.image_url.url: "),
    ("url empty", chat(url_part("")), "invalid_value", "messages.0.content.0.image_url.url: "),
    (
        "unknown detail",
        chat(TEXT, url_part("data:,", detail="best")),
        "invalid_value",
        "messages.0.content.1.image_url.detail: ",
    ),
    (
        "a call without a function",
        chat(messages=[{"role": "assistant", "tool_calls": [{"id": "1"}]}, *message("user", TEXT)]),
        "missing_parameter",
        "messages.0.tool_calls.0.function: ",
    ),
    ("too many messages", chat(messages=message("user") * 4097), "invalid_value", "messages: "),
    ("too many parts", chat(*[TEXT] * 4097), "invalid_value", "messages.0.content: "),
    ("a file id", chat({"type": "input_image", "image_url": "data:,", "file_id": "x"}),
     "invalid_value", "messages.0.content.0.file_id: "),
    (
        "image of the system",
        chat(messages=[*message("system", image_part("tower.png")), *message("user", TEXT)]),
        "invalid_prompt",
        "system",
    ),
    (
        "image of the assistant",
        chat(messages=[*message("user", TEXT), *message("assistant", image_part("tower.png")),
                       *message("user", TEXT)]),
        "invalid_prompt",
        "assistant",
    ),
    ("wrong base64", chat(url_part("data:image/png;base64,!!!")), "invalid_image", "base64"),
    ("no comma", chat(url_part("data:image/png;base64")), "invalid_image", "data URL"),
    ("html", chat(url_part("data:text/html,<p>Hi")), "invalid_image", "image"),
    ("svg", chat(url_part("data:image/svg+xml,<svg/>")), "invalid_image", "image"),
    ("unknown image option", chat(url_part("data:,", max_dynamic_patch=3), TEXT), None, ""),
    ("n too large", chat(TEXT, n=9, temperature=1), "invalid_value", "is 8 (max_answers)"),
    ("n of 0", chat(TEXT, n=0), "invalid_value", "n: "),
    ("max_tokens of 0", chat(TEXT, max_tokens=0), "invalid_value", "max_tokens: "),
    ("temperature of 3", chat(TEXT, temperature=3), "invalid_value", "temperature: "),
    ("too many stops", chat(TEXT, stop=["a"] * 17), "invalid_value", "stop: "),
    ("top_logprobs alone", chat(TEXT, top_logprobs=1), "invalid_value", "requires logprobs"),
    (
        "stream_options alone",
        chat(TEXT, stream_options={"include_usage": True}),
        "invalid_value",
        "requires stream",
    ),
    ("a tool without a function", chat(TEXT, tools=[{"type": "function"}]), "missing_parameter",
     "tools.0.function: "),
    ("tools of a model without them",
     chat(TEXT, tools=[{"type": "function", "function": {"name": "f"}}]), "tools_not_supported",
     "tools: the chat template of this model does not support tools"),
    (
        "an unknown format",
        chat(TEXT, response_format={"type": "xml"}),
        "invalid_value",
        "response_format: ",
    ),
    ("a schema of an unknown type", chat(TEXT, guided_json={"properties": {"a": {"type": "x"}}}),
     "invalid_grammar", "guided_json: the JSON schema cannot be compiled: at /properties/a"),
    ("a schema that is an empty text", chat(TEXT, guided_json=""), "invalid_grammar",
     "guided_json: the JSON schema is not JSON"),
    ("another one", chat(TEXT, structured_outputs={"json": ""}), "invalid_grammar",
     "structured_outputs.json: the JSON schema is not JSON"),
    ("a pattern that is too complex in the answer",
     chat(TEXT, guided_regex="(((a{100}){100}){100})"), "invalid_grammar", "cannot be followed"),
    ("a schema of 65 levels", chat(TEXT, guided_json=schema_levels(33)), "invalid_grammar",
     "guided_json: the JSON schema is nested more than 64 levels"),
    ("a schema that is only itself", chat(TEXT, guided_json={"$ref": "#"}), "invalid_grammar",
     "guided_json"),
    ("a schema elsewhere", chat(TEXT, guided_json={"$ref": "http://127.0.0.1/schema"}),
     "invalid_grammar", "guided_json"),
    ("a schema that is too large", chat(TEXT, guided_json={"enum": ["a" * 2000] * 100}),
     "invalid_grammar", "at most 131072 bytes"),
    ("a schema of an impossible range",
     chat(TEXT, guided_json={"type": "integer", "minimum": 2, "maximum": 1}),
     "invalid_grammar", "guided_json"),
    ("a pattern that is no regular expression", chat(TEXT, guided_regex="(["), "invalid_grammar",
     "guided_regex: the regular expression cannot be compiled"),
    ("two grammars", chat(TEXT, guided_regex="a", guided_choice=["a"]), "invalid_value",
     "only one field"),
    ("a penalty of 3", chat(TEXT, presence_penalty=3), "invalid_value", "presence_penalty: "),
    ("a bias on no token", chat(TEXT, logit_bias={"x": 1}), "invalid_value", "logit_bias.x"),
    ("a bias on an unknown token", chat(TEXT, logit_bias={"99999999": 1}), "invalid_option",
     "logit_bias"),
    ("too long", chat(text_part("word " * 2000)), "context_length_exceeded", "1024"),
]  # fmt: skip


def check(reply: Reply, status: int, code: str | None, fragment: str) -> None:
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (status, code or error["code"]), error
    assert fragment.lower() in error["message"].lower()
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 600
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    for internal in ("Traceback", "vlcore/", ".py", "pydantic"):
        assert internal not in reply.body.decode()


@pytest.fixture(autouse=True)
def _server_still_works(url: str) -> Any:
    """After each test, a good request over a new connection has the right completion."""
    yield
    reply = send(url, post(GOOD))
    assert reply.json()["choices"][0]["message"]["content"] == GOOD_COMPLETION


@pytest.mark.parametrize(
    ("body", "code", "fragment"),
    [pytest.param(*case, id=name) for name, *case in [*JSON, *BODIES]],
)
def test_an_invalid_body(url: str, body: Any, code: str | None, fragment: str) -> None:
    check(send(url, post(body)), 400, code, fragment)


def test_an_unknown_model(url: str) -> None:
    for model in ("gpt-4", "../../etc/passwd", "tiny\0", "x" * 10_000):
        check(send(url, post(GOOD | {"model": model})), 404, "model_not_found", "not served here")


def test_text_with_nul_and_control_characters_is_text(url: str) -> None:
    reply = send(url, post(chat(text_part("What\0 is\x1b[31m this\u202e?"), max_tokens=2)))
    assert reply.status == 200


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        pytest.param(request("GET", "/v1/chat/completions"), 405, "method_not_allowed", id="GET"),
        pytest.param(request("DELETE", "/v1/models"), 405, "method_not_allowed", id="DELETE"),
        pytest.param(request("BREW", "/health"), 405, "method_not_allowed", id="unknown method"),
        pytest.param(request("GET", "/v1/nothing"), 404, "not_found", id="unknown path"),
        pytest.param(request("GET", "/%ff%00%2e%2e/%"), 404, "not_found", id="odd percents"),
        pytest.param(request("GET", "/v1/models/%ff%00"), 404, "model_not_found", id="odd model"),
        pytest.param(request("GET", "/../../etc/passwd"), 404, "not_found", id="dots"),
        pytest.param(request("GET", "*"), 404, "not_found", id="no path"),
        pytest.param(
            post(GOOD, {"Content-Type": "text/plain"}), 415, "unsupported_media_type", id="text"
        ),
        pytest.param(post(GOOD, {"Content-Type": ""}), 415, "unsupported_media_type", id="no type"),
        pytest.param(
            post(GOOD, {"Content-Type": b"application/json\xff"}),
            415,
            "unsupported_media_type",
            id="odd type",
        ),
        pytest.param(post(GOOD, {"Host": "evil.example"}), 421, "unknown_host", id="host"),
        pytest.param(
            request("GET", "/health", headers={"Host": "localhost.evil.example:80"}),
            421,
            "unknown_host",
            id="host of a name",
        ),
        pytest.param(
            request("GET", "/health", headers={"Host": b"\xff\xfe"}), 421, "unknown_host",
            id="odd host",
        ),
        pytest.param(request("GET", "/health", headers={"Host": ""}), 400, "invalid_http", id="no"),
        pytest.param(
            post(GOOD, {"Content-Length": str(10**12)}), 413, "body_too_large", id="huge length"
        ),
        pytest.param(
            post(GOOD, {"Content-Length": "\xb2"}), 400, "invalid_http", id="superscript length"
        ),
        pytest.param(post(GOOD, {"Content-Length": "-1"}), 400, "invalid_http", id="-1"),
        pytest.param(
            post(GOOD, {"Content-Length": "5\r\nContent-Length: 7"}),
            400,
            "invalid_http",
            id="two lengths",
        ),
        pytest.param(
            post(b"0\r\n\r\nGET /health HTTP/1.1\r\n\r\n", {"Transfer-Encoding": "chunked, gzip"}),
            400,
            "invalid_http",
            id="two encodings",
        ),
        pytest.param(
            post(b"ZZ\r\nhello\r\n", {"Content-Length": "", "Transfer-Encoding": "chunked"}),
            400,
            "invalid_http",
            id="damaged chunks",
        ),
        pytest.param(
            request("GET", "/health", headers={"X-Flood": "x" * 100_000}), 431, "head_too_large",
            id="long header",
        ),
        pytest.param(
            request("GET", "/health", headers={f"X-{i}": "flood" for i in range(10_000)}),
            431,
            "head_too_large",
            id="many headers",
        ),
        pytest.param(request("GET", "/" + "a" * 100_000), 431, "head_too_large", id="long path"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "invalid_http", id="TLS"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400, "invalid_http", id="ssh"),
    ],
)  # fmt: skip
def test_invalid_http(url: str, raw: bytes, status: int, code: str) -> None:
    check(send(url, raw), status, code, "")


@pytest.mark.parametrize("is_json", [True, False])
def test_a_length_in_addition_to_chunks_closes_the_connection(url: str, is_json: bool) -> None:
    """The bytes that a proxy takes for a body are not handled as a second request."""
    content = json.dumps(chat(TEXT, max_tokens=1)).encode() if is_json else b"hello"
    second = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    body = f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n" + second
    length = str(len(body) - len(second))
    raw = post(body, {"Content-Length": length, "Transfer-Encoding": "chunked", "Connection": ""})
    reply = send(url, raw)
    check(reply, 400, "invalid_http", "")
    assert reply.body.count(b"HTTP/1.1") == 0

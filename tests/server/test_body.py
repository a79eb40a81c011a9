from __future__ import annotations

import json

import pytest

from vlcore.server.body import JsonBody
from vlcore.server.errors import ApiError

URL = "data:image/png;base64," + "QUJD" * 10_000


def restored(body: bytes) -> tuple[str, int]:
    """Return the URL of a body, and the size of what is parsed as JSON."""
    json_body = JsonBody(body, 10**6)
    return json_body.restore(json.loads(json_body.text)["url"]), len(json_body.text)


def test_a_large_data_url_is_not_parsed_as_json() -> None:
    url, size = restored(json.dumps({"url": URL, "text": 'a "data: b'}).encode())
    assert url == URL
    assert size < 200


@pytest.mark.parametrize(("escaped", "character"), [(r"\/", "/"), (r"\n", "\n"), (r"\r", "\r")])
def test_escapes_that_clients_write_are_decoded(escaped: str, character: str) -> None:
    url, size = restored(f'{{"url": "{URL}{escaped}"}}'.encode())
    assert url == URL + character
    assert size < 200


@pytest.mark.parametrize("text", [r"\u0041", r"\\/", r"\"", "é"])
def test_other_strings_are_left_to_the_json_parser(text: str) -> None:
    body = f'{{"url": "{URL}{text}"}}'.encode()
    url, size = restored(body)
    assert url == json.loads(body)["url"]
    assert size > len(URL)


def test_a_small_data_url_stays() -> None:
    body = b'{"url": "data:,abc"}'
    assert JsonBody(body, 100).text == body


def test_a_placeholder_cannot_be_guessed() -> None:
    json_body = JsonBody(json.dumps({"url": URL}).encode(), 1000)
    assert json_body.restore("data-url-0") == "data-url-0"
    placeholder = json.loads(json_body.text)["url"]
    assert placeholder not in JsonBody(json.dumps({"url": URL}).encode(), 1000).text.decode()


def test_the_rest_of_a_body_has_a_maximum_size() -> None:
    with pytest.raises(ApiError, match="max_text_bytes") as caught:
        JsonBody(b" " * 1001, 1000)
    assert caught.value.status == 413


@pytest.mark.parametrize("values", [b"0," * 65_537, b'"":' * 16_385, b"{" * 8_193, b"[" * 8_193])
def test_the_number_of_values_is_bounded_before_they_are_parsed(values: bytes) -> None:
    with pytest.raises(ApiError, match="too many values") as caught:
        JsonBody(values, 10**7)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "text",
    ["a,b:{[" * 300_000, '\\",' * 300_000, "\\" * 300_001 + "," * 300_000, '"' * 99 + "[" * 40_000],
)
def test_characters_in_texts_are_not_counted(text: str) -> None:
    body = json.dumps({"content": text}).encode()
    assert JsonBody(body, 10**7).text == body
    with pytest.raises(ApiError, match="too many values"):
        JsonBody(body[:-1] + b",0" * 65_537 + b"}", 10**7)


def test_a_text_that_never_ends_hides_no_values() -> None:
    """A parser reads no further than the error, which is the end of the text or a backslash."""
    values = b"[" * 40_000
    assert JsonBody(b'{"a": "' + values, 10**6)
    with pytest.raises(ApiError, match="too many values"):
        JsonBody(b'{"a": "\\\\"' + values + b'"', 10**6)

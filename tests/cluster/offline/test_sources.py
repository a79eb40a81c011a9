from __future__ import annotations

import pytest

from vlcore.cluster.offline.sources import is_uri, split_pattern, without_credentials


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("s3://bucket/images", ("s3://bucket/images", "")),
        ("s3://bucket/images/*.jpg", ("s3://bucket/images", "*.jpg")),
        ("s3://bucket/*/small/[ab].png", ("s3://bucket", "*/small/[ab].png")),
        ("file:///data/**", ("file:///data", "**")),
    ],
)
def test_a_pattern_begins_at_its_first_wildcard(location: str, parts: tuple[str, str]) -> None:
    assert split_pattern(location) == parts


def test_names_have_no_credentials() -> None:
    uri = "s3://key:secret@bucket/images?endpoint_override=localhost"
    assert without_credentials(uri) == "s3://bucket/images"
    assert without_credentials("abfs://images@account.net/a") == "abfs://images@account.net/a"
    assert without_credentials("a:b@c.png") == "a:b@c.png"


def test_web_urls_and_paths_name_no_filesystem() -> None:
    assert [is_uri(text) for text in ("s3://a", "memory://a", "file:///a")] == [True] * 3
    others = ("https://example.org/a.png", "data:image/png;base64,AA", "C:\\a.png", "a.png")
    assert [is_uri(text) for text in others] == [False] * 4

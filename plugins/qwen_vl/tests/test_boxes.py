from __future__ import annotations

import pytest
from vl_plugin_qwen.boxes import parse_answer

from vlcore import Region

SIZE = (400, 200)


def test_an_answer_is_taken_apart_in_order() -> None:
    answer = "Here <ref> two dogs </ref><box>(0,0),(500,500)</box><box>(500,0),(1000,999)</box>."
    assert parse_answer(answer, SIZE) == (
        "Here ",
        Region("two dogs", (0, 0, 200, 100)),
        Region("two dogs", (200, 0, 400, 199)),
        ".",
    )


def test_a_label_belongs_to_the_boxes_that_follow_it_alone() -> None:
    answer = "<ref>a</ref><box>(1,2),(3,4)</box> and <box>(1,2),(3,4)</box><ref>b</ref>, then"
    parts = parse_answer(answer, (1000, 1000))
    assert parts == (
        Region("a", (1, 2, 3, 4)),
        " and ",
        Region("", (1, 2, 3, 4)),
        "<ref>b</ref>, then",
    )


def test_pixels_are_rounded_down_exactly() -> None:
    (region,) = parse_answer("<box>(290,579),(580,999)</box>", (100, 1000))
    assert region == Region("", (29, 579, 58, 999))


def test_spaces_in_a_box_are_read_as_the_release_does() -> None:
    assert parse_answer("<box>( 1, 2 ) , (3 ,4)</box>", (1000, 1000)) == (Region("", (1, 2, 3, 4)),)


@pytest.mark.parametrize(
    "box",
    [
        "(1,2),(3,4",
        "(1,2),(3)",
        "(1,2)",
        "",
        "1,2,3,4",
        "(1,2),(3,4),(5,6)",
        "(a,b),(c,d)",
        "(1.5,2),(3,4)",
        "(-1,2),(3,4)",
        "(1,2),(3,1001)",
        "(1,2),(99999999999999999999,4)",
        "(3,2),(1,4)",
        "(1,4),(3,2)",
        "(١,٢),(٣,٤)",
    ],
)
def test_a_malformed_box_is_text(box: str) -> None:
    answer = f"<ref>dog</ref><box>{box}</box>."
    assert parse_answer(answer, SIZE) == (answer,)
    good = "<box>(0,0),(1000,1000)</box>"
    assert parse_answer(f"<ref>dog</ref>{good}<box>{box}</box>{good}", SIZE) == (
        Region("dog", (0, 0, 400, 200)),
        f"<box>{box}</box>",
        Region("dog", (0, 0, 400, 200)),
    )


@pytest.mark.parametrize(
    "answer",
    [
        "<ref>dog",
        "<ref>dog</ref>",
        "<box>",
        "<box>(1,2),(3,4)",
        "(1,2),(3,4)</box>",
        "</box><box>",
        "<quad>(1,2),(3,4),(5,6),(7,8)</quad>",
        "<ref>" * 50_000,
        "",
    ],
)
def test_an_unfinished_answer_is_text(answer: str) -> None:
    assert "".join(map(str, parse_answer(answer, SIZE))) == answer
    assert not any(isinstance(part, Region) for part in parse_answer(answer, SIZE))


def test_marks_inside_marks_are_text() -> None:
    answer = "<ref>a<ref>b</ref><box>(0,0),(1000,1000)</box>"
    assert parse_answer(answer, SIZE) == ("<ref>a", Region("b", (0, 0, 400, 200)))
    answer = "<box><box>(0,0),(1000,1000)</box>"
    assert parse_answer(answer, SIZE) == ("<box>", Region("", (0, 0, 400, 200)))

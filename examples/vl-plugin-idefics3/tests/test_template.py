"""The checkpoint's own template, and the tokens between the rows of an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from vl_plugin_idefics3.template import Idefics3Template

import vlcore
from vlcore import Control, Rows

AROUND = "<fake_token_around_image>"


def test_line_and_column_are_written_before_each_tile() -> None:
    assert Idefics3Template("").expand((1, 2), 12) == (
        Control(f"{AROUND}<row_1_col_1>"),
        Rows(4),
        Control(f"{AROUND}<row_1_col_2>"),
        Rows(4),
        Control("\n"),
        Control(f"\n{AROUND}<global-img>"),
        Rows(4),
        Control(AROUND),
    )


def test_an_image_that_was_not_split() -> None:
    expected = (Control(f"{AROUND}<global-img>"), Rows(4), Control(AROUND))
    assert Idefics3Template("").expand((0, 0), 4) == expected


def test_no_other_template_is_known(checkpoint: Path) -> None:
    with pytest.raises(vlcore.OptionError, match="there is no chat template 'vicuna'"):
        vlcore.load_chat_template(checkpoint, "vicuna")


def test_a_checkpoint_without_a_template(write: Callable[..., Path]) -> None:
    checkpoint = write("smolvlm")
    (checkpoint / "chat_template.jinja").unlink()
    with pytest.raises(vlcore.ConfigError, match="ships no chat template"):
        vlcore.load_chat_template(checkpoint)

"""The boxes in Qwen-VL's answers: ``<ref>label</ref><box>(x1,y1),(x2,y2)</box>``.

Coordinates count thousandths of the picture's width and height.

Source: ``_fetch_all_box_with_ref`` and ``draw_bbox_on_latest_picture`` in
``tokenization_qwen.py`` of the released Qwen-VL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlcore import Region

SCALE = 1000
_BOX = re.compile(r"<box>([^<>]*)</box>")
_POINTED = re.compile(rf"(?:<ref>([^<>]*)</ref>\s*)?{_BOX.pattern}(?:\s*{_BOX.pattern})*")
_CORNERS = re.compile(r"\s*,\s*".join([r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)"] * 2), re.ASCII)


def parse_answer(answer: str, size: tuple[int, int]) -> tuple[str | Region, ...]:
    """Take an answer apart into text and regions, in the order they were written.

    A label before several boxes belongs to each of them. A box that is malformed, turned inside
    out or outside 0..1000 stays text, and so does a label without a box.

    Args:
        answer: the text of an answer.
        size: the picture's width and height, in pixels.
    """
    pieces: list[str | Region] = []
    end = 0
    for found in _POINTED.finditer(answer):
        read = tuple(_read_boxes(found[0], (found[1] or "").strip(), size))
        if any(isinstance(piece, Region) for piece in read):
            pieces += [answer[end : found.start()], *read]
            end = found.end()
    pieces.append(answer[end:])
    return tuple(piece for piece in pieces if piece)


def _read_boxes(pointed: str, label: str, size: tuple[int, int]) -> Iterator[str | Region]:
    width, height = size
    for box in _BOX.finditer(pointed):
        corners = _CORNERS.fullmatch(box[1].strip())
        left, top, right, bottom = map(int, corners.groups()) if corners else (1, 1, 0, 0)
        if left <= right <= SCALE and top <= bottom <= SCALE:
            x1, x2 = (x * width // SCALE for x in (left, right))
            y1, y2 = (y * height // SCALE for y in (top, bottom))
            yield Region(label, (x1, y1, x2, y2))
        else:
            yield box[0]

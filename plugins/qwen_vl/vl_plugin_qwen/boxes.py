"""Boxes in Qwen-VL's completions: ``<ref>label</ref><box>(x1,y1),(x2,y2)</box>``.

Coordinates are thousandths of the image's width and height.

Source: ``_fetch_all_box_with_ref`` and ``draw_bbox_on_latest_picture`` in
``tokenization_qwen.py`` of the Qwen-VL reference implementation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlcore import Region

SCALE = 1000
_BOX = re.compile(r"<box>([^<>]*)</box>")
_REFERENCE = re.compile(rf"(?:<ref>([^<>]*)</ref>\s*)?{_BOX.pattern}(?:\s*{_BOX.pattern})*")
_CORNERS = re.compile(r"\s*,\s*".join([r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)"] * 2), re.ASCII)


def parse_answer(answer: str, size: tuple[int, int]) -> tuple[str | Region, ...]:
    """Split a completion into text and regions, in their order.

    A label before several boxes belongs to each of them. A box that is malformed, has swapped
    corners or is outside 0..1000 stays text, and so does a label without a box.

    Args:
        answer: the text of a completion.
        size: the image's width and height, in pixels.
    """
    items: list[str | Region] = []
    end = 0
    for found in _REFERENCE.finditer(answer):
        boxes = tuple(_read_boxes(found[0], (found[1] or "").strip(), size))
        if any(isinstance(item, Region) for item in boxes):
            items += [answer[end : found.start()], *boxes]
            end = found.end()
    items.append(answer[end:])
    return tuple(item for item in items if item)


def _read_boxes(reference: str, label: str, size: tuple[int, int]) -> Iterator[str | Region]:
    width, height = size
    for box in _BOX.finditer(reference):
        corners = _CORNERS.fullmatch(box[1].strip())
        left, top, right, bottom = map(int, corners.groups()) if corners else (1, 1, 0, 0)
        if left <= right <= SCALE and top <= bottom <= SCALE:
            x1, x2 = (x * width // SCALE for x in (left, right))
            y1, y2 = (y * height // SCALE for y in (top, bottom))
            yield Region(label, (x1, y1, x2, y2))
        else:
            yield box[0]

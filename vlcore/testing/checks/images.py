"""Checks of the vision model: pictures in, rows out."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor

from vlcore.errors import VlcoreError
from vlcore.testing.check import check
from vlcore.testing.report import CheckFailedError, fail
from vlcore.testing.samples import encode, forward, plain_images, sample_image, unusual_images
from vlcore.testing.subject import Subject
from vlcore.vision.model import ImageInputs, VisionModel

_NUM_THREADS = 8
_NUM_ROUNDS = 3
_SHORT_SWITCH_S = 1e-6


@check("vision-loads", "vl_vision_model gives a VisionModel with a hidden_size")
def vision_loads(subject: Subject) -> None:
    """Load it."""
    subject.load("vision_model")


@check("plain-pictures", "every RGB picture is preprocessed and encoded, one result each")
def plain_pictures_are_encoded(subject: Subject) -> None:
    """Encode pictures one by one, and together."""
    subject.load("plain_rows")
    encode(subject.vision_model, plain_images())


@check("rows-shape", "rows are [k, hidden_size], k at least 1, as wide as the language model")
def rows_shape(subject: Subject) -> None:
    """Look at the rows of pictures of several sizes."""
    model = subject.vision_model
    for image, found in zip(plain_images(), subject.plain_rows, strict=True):
        shape = list(found.rows.shape)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != model.hidden_size:
            fail(
                expected=f"rows [k, {model.hidden_size}], k at least 1",
                came=f"a tensor {shape}",
                where=f"{_forward_of(model)}, {_size(image)}",
                advice="return one matrix for each picture; hidden_size is its width",
            )
    width = subject.language_model.hidden_size
    if model.hidden_size != width:
        fail(
            expected=f"hidden_size {width}, the width of the language model's embeddings",
            came=str(model.hidden_size),
            where=f"{type(model).__name__}.hidden_size",
            advice="set it to the width after the projector",
        )


@check("rows-finite", "rows hold neither NaN nor Inf")
def rows_finite(subject: Subject) -> None:
    """Look at the rows of pictures of several sizes."""
    for image, found in zip(plain_images(), subject.plain_rows, strict=True):
        if bad := int((~torch.isfinite(found.rows)).sum()):
            fail(
                expected="finite values",
                came=f"{bad} of {found.rows.numel()} are NaN or Inf",
                where=f"{_forward_of(subject.vision_model)}, {_size(image)}",
                advice="look for a division by zero, an overflow, or weights that were not loaded",
            )


@check("rows-dtype", "rows are on the device and of the dtype that were asked for")
def rows_dtype(subject: Subject) -> None:
    """Load the model in another dtype too."""
    other = torch.bfloat16 if subject.dtype is torch.float32 else torch.float32
    for dtype in (subject.dtype, other):
        own = dtype is subject.dtype
        model = subject.vision_model if own else subject.load_vision_model(dtype)
        rows = encode(model, [sample_image((64, 48))])[0].rows
        for what, asked, came in (
            ("dtype", dtype, rows.dtype),
            ("dtype", dtype, model.dtype),
            ("device", subject.device.type, rows.device.type),
            ("device", subject.device.type, model.device.type),
        ):
            if came != asked:
                of_rows = came in (rows.dtype, rows.device.type)
                fail(
                    expected=f"{what} {asked}, as vl_vision_model was asked for",
                    came=str(came),
                    where=_forward_of(model) if of_rows else f"{type(model).__name__}.{what}",
                    advice="pass device and dtype on to checkpoint.load_module, and keep to them",
                )


@check("rows-announced", "num_rows of preprocess is the number of rows that forward gives")
def rows_announced(subject: Subject) -> None:
    """Compare, for pictures of several sizes."""
    model = subject.vision_model
    for image, found in zip(plain_images(), subject.plain_rows, strict=True):
        inputs = model.preprocess(image)
        announced = inputs.num_rows if isinstance(inputs, ImageInputs) else None
        if announced is not None and announced != len(found.rows):
            fail(
                expected=f"num_rows={len(found.rows)}, as many as forward gives",
                came=f"num_rows={announced}",
                where=f"{type(model).__name__}.preprocess, {_size(image)}",
                advice="count as assemble lays out, or leave num_rows out",
            )


@check(
    "batch-equals-singles",
    "pictures of mixed sizes give the same rows together, in any order, as one by one",
)
def batch_equals_singles(subject: Subject) -> None:
    """Encode several orders; the tolerance is a share of the largest value."""
    model = subject.vision_model
    pictures, alone = plain_images(), [found.rows for found in subject.plain_rows]
    count = len(pictures)
    for order in ([*range(count)], [*range(count)][::-1], [2, 0, 2, 3, 1]):
        together = [found.rows for found in encode(model, [pictures[i] for i in order])]
        for place, i in enumerate(order):
            difference = _difference(together[place], alone[i])
            if difference > subject.tolerance:
                _fail_differing(
                    model,
                    f"picture {place + 1} of a batch of {len(order)} ({_size(pictures[i])})",
                    f"the rows it gives alone, to {subject.tolerance:g} of the largest",
                    _told(together[place], alone[i], difference),
                    "return results in the order of the inputs; let no picture see another: "
                    "masks for padding, no batch statistics, eval()",
                )


@check("rows-repeat", "the same picture, and the same inputs, give the same rows twice")
def rows_repeat(subject: Subject) -> None:
    """Encode twice what was preprocessed once, and preprocess it anew; on a CPU, exactly."""
    model = subject.vision_model
    exact = 0 if subject.device.type == "cpu" else subject.tolerance
    for image, found in zip(plain_images(), subject.plain_rows, strict=True):
        inputs = [model.preprocess(image)]
        for again in (forward(model, inputs), forward(model, inputs)):
            if (difference := _difference(again[0].rows, found.rows)) > exact:
                _fail_differing(
                    model,
                    _size(image),
                    "the rows that it gave before",
                    _told(again[0].rows, found.rows, difference),
                    "call eval() (dropout), draw nothing at random, and change no inputs in place",
                )


@check("threads", "preprocess gives the same in several threads at once")
def threads(subject: Subject) -> None:
    """Preprocess different pictures at the same time, and encode them in another thread."""
    model = subject.vision_model
    pictures, alone = plain_images(), [found.rows for found in subject.plain_rows]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SHORT_SWITCH_S)  # gives the threads many chances to disturb each other
    start = threading.Barrier(_NUM_THREADS)

    def work(thread: int) -> list[tuple[int, object]]:
        start.wait()
        order = [(thread + step) % len(pictures) for step in range(_NUM_ROUNDS * len(pictures))]
        return [(i, model.preprocess(pictures[i].copy())) for i in order]

    try:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            prepared = [one for part in pool.map(work, range(_NUM_THREADS)) for one in part]
    finally:
        sys.setswitchinterval(interval)
    with ThreadPoolExecutor(1) as device:
        for i, inputs in prepared:
            rows = device.submit(forward, model, [inputs]).result()[0].rows
            if (difference := _difference(rows, alone[i])) > subject.tolerance:
                _fail_differing(
                    model,
                    f"preprocess in {_NUM_THREADS} threads, {_size(pictures[i])}",
                    "the rows that it gives in one thread",
                    _told(rows, alone[i], difference),
                    "keep nothing on self in preprocess: several threads are in it at a time",
                )


@check(
    "odd-images",
    "pictures of extreme shapes and of every mode give rows, or an error of vlcore",
)
def odd_images(subject: Subject) -> None:
    """Hand them to preprocess as they are."""
    model = subject.vision_model
    for name, image in unusual_images().items():
        where = f"{type(model).__name__}, with a picture that is {name}"
        advice = (
            'begin preprocess with image.convert("RGB"); where a picture cannot be taken, raise '
            "vlcore.ImageError and say why"
        )
        try:
            rows = encode(model, [image])[0].rows
        except VlcoreError:
            continue
        except CheckFailedError:
            raise
        except (Exception, SystemExit) as error:
            fail(
                expected="rows, or an error of vlcore",
                came=f"{type(error).__name__}: {error}",
                where=where,
                advice=advice,
            )
        if not rows.numel() or not torch.isfinite(rows).all():
            fail(
                expected="rows of finite values, or an error of vlcore",
                came=f"a tensor {list(rows.shape)} with {int((~torch.isfinite(rows)).sum())} "
                "values that are NaN or Inf",
                where=where,
                advice=advice,
            )


@check("image-unchanged", "preprocess leaves the picture as it was")
def image_unchanged(subject: Subject) -> None:
    """Compare before and after: a conversation keeps its pictures."""
    for image in (*plain_images(), *unusual_images().values()):
        before = image.copy()
        try:
            subject.vision_model.preprocess(image)
        except Exception:  # noqa: S112  (odd-images and plain-pictures report it)
            continue
        if (image.mode, image.size) != (before.mode, before.size) or image != before:
            fail(
                expected=f"the picture as it was: {before.mode}, {_size(before)}",
                came=f"another one: {image.mode}, {_size(image)}",
                where=f"{type(subject.vision_model).__name__}.preprocess",
                advice="resize gives a new picture; thumbnail, paste and putalpha change the old",
            )


def _difference(rows: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value; NaN equals NaN."""
    if rows.shape != expected.shape or rows.dtype != expected.dtype:
        return float("inf")
    if not torch.equal(rows.isfinite(), expected.isfinite()):
        return float("inf")
    if torch.equal(rows.nan_to_num(), expected.nan_to_num()):
        return 0.0
    largest = expected.nan_to_num().abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((rows - expected).nan_to_num(nan=0.0).abs().max() / largest)


def _told(rows: Tensor, expected: Tensor, difference: float) -> str:
    if rows.shape != expected.shape:
        return f"{list(rows.shape)} where {list(expected.shape)} came before"
    return f"rows that differ by {difference:.2g} of the largest"


def _fail_differing(model: VisionModel, where: str, expected: str, came: str, advice: str) -> None:
    fail(expected=expected, came=came, where=f"{_forward_of(model)}, {where}", advice=advice)


def _forward_of(model: VisionModel) -> str:
    uses_tower = type(model).forward is VisionModel.forward
    return f"{type(model).__name__}.{'tower and assemble' if uses_tower else 'forward'}"


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height} pixels"

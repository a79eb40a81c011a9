"""Checks of the vision model: images in, image embeddings out."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from vlcore.errors import VlcoreError
from vlcore.testing.check import check
from vlcore.testing.report import CheckFailedError, fail
from vlcore.testing.samples import encode, forward, plain_images, sample_image, unusual_images
from vlcore.testing.subject import Subject
from vlcore.vision.model import ImageInputs, VisionModel

_NUM_THREADS = 8
_NUM_ROUNDS = 3
_SHORT_SWITCH_S = 1e-6


def _depends_on_mode(module: nn.Module) -> bool:
    """Return whether a module may compute something else in training mode."""
    is_torchs = type(module).__module__.startswith("torch.nn.")
    return not is_torchs or isinstance(module, _DropoutNd | _NormBase)


@check(
    "vision-loads", "vl_vision_model returns a VisionModel with a hidden_size, in evaluation mode"
)
def vision_loads(subject: Subject) -> None:
    """Load the vision model, and look for modules that would apply dropout."""
    model = subject.load("vision_model")
    for attribute, value in vars(model).items():
        for name, module in value.named_modules() if isinstance(value, nn.Module) else ():
            if module.training and _depends_on_mode(module):
                fail(
                    expected="modules in evaluation mode",
                    actual=f"{type(module).__name__} in training mode",
                    where=".".join(filter(None, (type(model).__name__, attribute, name))),
                    advice="call eval(), as load_module does: with dropout in config.json, an "
                    "image has other embeddings each time",
                )


@check("plain-pictures", "every RGB image is preprocessed and encoded, one result each")
def plain_images_are_encoded(subject: Subject) -> None:
    """Encode images one by one, and together."""
    subject.load("plain_rows")
    encode(subject.vision_model, plain_images())


@check("rows-shape", "rows are [k, row_width], k at least 1, as wide as the language model")
def rows_shape(subject: Subject) -> None:
    """Check the embeddings of images of several sizes."""
    model = subject.vision_model
    for image, found in zip(plain_images(), subject.plain_rows, strict=True):
        shape = list(found.rows.shape)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != model.row_width:
            fail(
                expected=f"rows [k, {model.row_width}], k at least 1",
                actual=f"a tensor {shape}",
                where=f"{_forward_of(model)}, {_size(image)}",
                advice="return one matrix for each image; row_width is its width",
            )
    width = subject.language_model.row_width
    if model.row_width != width:
        fail(
            expected=f"row_width {width}, the width of the language model's embeddings",
            actual=str(model.row_width),
            where=f"{type(model).__name__}.row_width, which is hidden_size by default",
            advice="set it to the width after the projector",
        )


@check("rows-finite", "rows hold neither NaN nor Inf")
def rows_finite(subject: Subject) -> None:
    """Check the embeddings of images of several sizes."""
    for image, found in zip(plain_images(), subject.plain_rows, strict=True):
        if bad := int((~torch.isfinite(found.rows)).sum()):
            fail(
                expected="finite values",
                actual=f"{bad} of {found.rows.numel()} are NaN or Inf",
                where=f"{_forward_of(subject.vision_model)}, {_size(image)}",
                advice="check for a division by zero, an overflow, or weights that were not loaded",
            )


@check("rows-dtype", "rows have the device and the dtype that were requested")
def rows_dtype(subject: Subject) -> None:
    """Load the model in another dtype too."""
    other = torch.bfloat16 if subject.dtype is torch.float32 else torch.float32
    for dtype in (subject.dtype, other):
        own = dtype is subject.dtype
        model = subject.vision_model if own else subject.load_vision_model(dtype)
        rows = encode(model, [sample_image((64, 48))])[0].rows
        for attribute, requested, actual in (
            ("dtype", dtype, rows.dtype),
            ("dtype", dtype, model.dtype),
            ("device", subject.device.type, rows.device.type),
            ("device", subject.device.type, model.device.type),
        ):
            if actual != requested:
                is_of_result = actual in (rows.dtype, rows.device.type)
                fail(
                    expected=f"{attribute} {requested}, as passed to vl_vision_model",
                    actual=str(actual),
                    where=_forward_of(model)
                    if is_of_result
                    else f"{type(model).__name__}.{attribute}",
                    advice="pass device and dtype to checkpoint.load_module, and keep them",
                )


@check("rows-announced", "num_rows of preprocess is the number of rows that forward returns")
def rows_announced(subject: Subject) -> None:
    """Compare, for images of several sizes."""
    model = subject.vision_model
    for image, found in zip(plain_images(), subject.plain_rows, strict=True):
        inputs = model.preprocess(image)
        num_rows = inputs.num_rows if isinstance(inputs, ImageInputs) else None
        if num_rows is not None and num_rows != len(found.rows):
            fail(
                expected=f"num_rows={len(found.rows)}, as many as forward returns",
                actual=f"num_rows={num_rows}",
                where=f"{type(model).__name__}.preprocess, {_size(image)}",
                advice="count as assemble lays out, or leave num_rows out",
            )


@check(
    "batch-equals-singles",
    "images of mixed sizes give the same rows together, in any order, as one by one",
)
def batch_equals_singles(subject: Subject) -> None:
    """Encode several orders; the tolerance is a share of the largest value."""
    model = subject.vision_model
    images, alone = plain_images(), [found.rows for found in subject.plain_rows]
    count = len(images)
    for order in ([*range(count)], [*range(count)][::-1], [2, 0, 2, 3, 1]):
        together = [found.rows for found in encode(model, [images[i] for i in order])]
        for position, i in enumerate(order):
            difference = relative_difference(together[position], alone[i])
            if difference > subject.tolerance:
                _fail_differing(
                    model,
                    f"image {position + 1} of a batch of {len(order)} ({_size(images[i])})",
                    f"the rows it gives alone, to {subject.tolerance:g} of the largest",
                    describe_difference(together[position], alone[i], difference),
                    "return results in the order of the inputs; images must not affect each other: "
                    "masks for padding, no batch statistics, eval()",
                )


@check("rows-repeat", "the same image, and the same inputs, give the same rows twice")
def rows_repeat(subject: Subject) -> None:
    """Encode twice what was preprocessed once, and preprocess it again; on a CPU, exactly."""
    model = subject.vision_model
    exact = 0 if subject.device.type == "cpu" else subject.tolerance
    for image, found in zip(plain_images(), subject.plain_rows, strict=True):
        inputs = [model.preprocess(image)]
        for again in (forward(model, inputs), forward(model, inputs)):
            if (difference := relative_difference(again[0].rows, found.rows)) > exact:
                _fail_differing(
                    model,
                    _size(image),
                    "the embeddings of the first time",
                    describe_difference(again[0].rows, found.rows, difference),
                    "call eval() (dropout), use no random numbers, and do not modify inputs",
                )


@check("threads", "preprocess returns the same in several threads at once")
def threads(subject: Subject) -> None:
    """Preprocess different images at the same time, and encode them in another thread."""
    model = subject.vision_model
    images, alone = plain_images(), [found.rows for found in subject.plain_rows]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SHORT_SWITCH_S)  # gives the threads many chances to interfere
    start = threading.Barrier(_NUM_THREADS)

    def work(thread: int) -> list[tuple[int, object]]:
        start.wait()
        order = [(thread + step) % len(images) for step in range(_NUM_ROUNDS * len(images))]
        return [(i, model.preprocess(images[i].copy())) for i in order]

    try:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            prepared = [pair for result in pool.map(work, range(_NUM_THREADS)) for pair in result]
    finally:
        sys.setswitchinterval(interval)
    with ThreadPoolExecutor(1) as device:
        for i, inputs in prepared:
            rows = device.submit(forward, model, [inputs]).result()[0].rows
            if (difference := relative_difference(rows, alone[i])) > subject.tolerance:
                _fail_differing(
                    model,
                    f"preprocess in {_NUM_THREADS} threads, {_size(images[i])}",
                    "the rows that it gives in one thread",
                    describe_difference(rows, alone[i], difference),
                    "preprocess must not write to self: several threads call it at a time",
                )


@check(
    "odd-images",
    "images of extreme shapes and of every mode give rows, or an error of vlcore",
)
def odd_images(subject: Subject) -> None:
    """Pass them to preprocess as they are."""
    model = subject.vision_model
    for name, image in unusual_images().items():
        where = f"{type(model).__name__}, with an image: {name}"
        advice = (
            'begin preprocess with image.convert("RGB"); for an image that cannot be used, raise '
            "vlcore.ImageError with the reason"
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
                actual=f"{type(error).__name__}: {error}",
                where=where,
                advice=advice,
            )
        if not rows.numel() or not torch.isfinite(rows).all():
            fail(
                expected="rows of finite values, or an error of vlcore",
                actual=f"a tensor {list(rows.shape)} with {int((~torch.isfinite(rows)).sum())} "
                "values that are NaN or Inf",
                where=where,
                advice=advice,
            )


@check("image-unchanged", "preprocess does not modify the image")
def image_unchanged(subject: Subject) -> None:
    """Compare before and after: a session keeps its images."""
    for image in (*plain_images(), *unusual_images().values()):
        before = image.copy()
        try:
            subject.vision_model.preprocess(image)
        except Exception:  # noqa: S112  (odd-images and plain-pictures report it)
            continue
        if (image.mode, image.size) != (before.mode, before.size) or image != before:
            fail(
                expected=f"the image as it was: {before.mode}, {_size(before)}",
                actual=f"another one: {image.mode}, {_size(image)}",
                where=f"{type(subject.vision_model).__name__}.preprocess",
                advice="resize returns a new image; thumbnail, paste and putalpha modify it",
            )


def relative_difference(rows: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest value; NaN equals NaN."""
    if rows.shape != expected.shape or rows.dtype != expected.dtype:
        return float("inf")
    if not torch.equal(rows.isfinite(), expected.isfinite()):
        return float("inf")
    if torch.equal(rows.nan_to_num(), expected.nan_to_num()):
        return 0.0
    largest = expected.nan_to_num().abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((rows - expected).nan_to_num(nan=0.0).abs().max() / largest)


def describe_difference(rows: Tensor, expected: Tensor, difference: float) -> str:
    """Describe embeddings that differ from the expected ones."""
    if rows.shape != expected.shape:
        return f"{list(rows.shape)} where {list(expected.shape)} before"
    return f"rows that differ by {difference:.2g} of the largest"


def _fail_differing(
    model: VisionModel, where: str, expected: str, actual: str, advice: str
) -> None:
    fail(expected=expected, actual=actual, where=f"{_forward_of(model)}, {where}", advice=advice)


def _forward_of(model: VisionModel) -> str:
    uses_tower = type(model).forward is VisionModel.forward
    return f"{type(model).__name__}.{'tower and assemble' if uses_tower else 'forward'}"


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height} pixels"

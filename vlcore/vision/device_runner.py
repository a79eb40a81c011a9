"""``DeviceRunner``: runs a vision model on one device, including the copies to and from it.

On CUDA, a batch is copied from pinned memory on a separate stream while the previous one is still
computed, and the computation has another stream, so that it does not delay the language model's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from vlcore._utils.resources import limit_torch_threads
from vlcore.errors import PluginContractError
from vlcore.vision.cuda_graphs import CudaGraphs, CudaRecorder, Tower
from vlcore.vision.model import (
    ImageInputs,
    ImageRows,
    VisionModel,
    assemble_batch,
    check_results,
    has_tower,
    not_finite,
)

CheckedResult = ImageRows | PluginContractError
"""An image's embeddings, or the error that describes what is wrong with them."""


class _Event(Protocol):
    def synchronize(self) -> None: ...


class _CompletedEvent:
    def synchronize(self) -> None:
        """Return at once, because the device computes synchronously."""


class DeviceRunner:
    """Encodes batches on a device that computes synchronously, such as a CPU.

    Args:
        model: the vision model.
        rows_device: device for the image embeddings; ``None`` leaves them on the model's device.
        torch_compile: compile the vision encoder, with these options of ``torch.compile`` or, if
            true, with its defaults.
    """

    num_concurrent_batches = 1
    """Number of batches in progress: 2 where one can be copied while another is computed."""

    def __init__(
        self,
        model: VisionModel,
        *,
        rows_device: torch.device | None = None,
        torch_compile: bool | Mapping[str, Any] = False,
    ) -> None:
        self.model = model
        self._rows_device = rows_device
        self._tower: Tower | None = None
        if has_tower(model):
            self._tower = model.tower
            if torch_compile is not False:
                options = torch_compile if isinstance(torch_compile, Mapping) else {}
                self._tower = torch.compile(model.tower, **options)

    def __call__(self, inputs: Sequence[Any]) -> list[CheckedResult]:
        """Encode a batch. The results can be read from any stream.

        Raises:
            PluginContractError: the model did not return one result for each image.
        """
        with torch.inference_mode():
            pixels = self._copy_to_device(inputs) if self._tower is not None else None
            with self._compute_context() as done:
                results = self._forward(inputs, pixels)
                checked = check_results(self.model, results, len(inputs))
                finite = self._copy_to_host(_are_finite(checked))
            done.synchronize()
            return [
                self._move_rows(image) if is_finite else not_finite(self.model)
                for image, is_finite in zip(checked, finite.tolist(), strict=True)
            ]

    def _forward(self, inputs: Sequence[Any], pixels: Tensor | None) -> object:
        if self._tower is None or pixels is None:
            return self.model.forward(inputs)
        return assemble_batch(self.model, self._tower(pixels), inputs)

    def _copy_to_device(self, inputs: Sequence[ImageInputs]) -> Tensor:
        """Concatenate the pixels of a batch on the device, in the model's dtype.

        Shapes:
            result: [tiles of all images, 3, H, W].
        """
        pixels = torch.cat([image.pixels for image in inputs])
        return pixels.to(self.model.device, self.model.dtype)

    @contextmanager
    def _compute_context(self) -> Iterator[_Event]:
        """Yield an event that is complete when everything launched in the context is computed."""
        yield _CompletedEvent()

    def _copy_to_host(self, values: Tensor) -> Tensor:
        """Copy a few values to the host, where they can be read after the event."""
        return values

    def _move_rows(self, image: CheckedResult) -> CheckedResult:
        """Move image embeddings to the device that was requested for them."""
        if self._rows_device is None or isinstance(image, PluginContractError):
            return image
        return replace(image, rows=image.rows.to(self._rows_device))


class CudaDeviceRunner(DeviceRunner):
    """Encodes batches on a CUDA device, one after another on a separate stream.

    Args:
        model: the vision model.
        rows_device: device for the image embeddings; ``None`` leaves them on the model's device.
        torch_compile: compile the vision encoder, with these options of ``torch.compile`` or, if
            true, with its defaults.
        cuda_graphs: capture the vision encoder as a CUDA graph at the first batch of a few sizes.
    """

    num_concurrent_batches = 2

    def __init__(
        self,
        model: VisionModel,
        *,
        rows_device: torch.device | None = None,
        torch_compile: bool | Mapping[str, Any] = False,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__(model, rows_device=rows_device, torch_compile=torch_compile)
        self._device = model.device
        self._input_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._compute_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._output_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # The current stream may still be copying the weights.
        self._compute_stream.wait_stream(torch.cuda.current_stream(self._device))
        self._launch_lock = threading.Lock()
        if self._tower is not None and cuda_graphs and not model.is_spread:
            self._tower = CudaGraphs(self._tower, CudaRecorder())

    def _copy_to_device(self, inputs: Sequence[ImageInputs]) -> Tensor:
        shape = (sum(len(image.pixels) for image in inputs), *inputs[0].pixels.shape[1:])
        pinned = torch.empty(shape, dtype=inputs[0].pixels.dtype, pin_memory=True)
        torch.cat([image.pixels for image in inputs], out=pinned)
        with torch.cuda.stream(self._input_stream):
            pixels = pinned.to(self._device, non_blocking=True)
            copied = self._input_stream.record_event()
        copied.synchronize()  # the batch of the other thread is computed meanwhile
        return pixels

    @contextmanager
    def _compute_context(self) -> Iterator[_Event]:
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with self._launch_lock, torch.cuda.stream(self._compute_stream):
            yield done
            done.record()

    def _forward(self, inputs: Sequence[Any], pixels: Tensor | None) -> object:
        if pixels is not None:
            # The memory belongs to the input stream, and must not be reused before it is read.
            pixels.record_stream(self._compute_stream)
            pixels = pixels.to(self.model.dtype)
        return super()._forward(inputs, pixels)

    def _copy_to_host(self, values: Tensor) -> Tensor:
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(
            values, non_blocking=True
        )

    def _move_rows(self, image: CheckedResult) -> CheckedResult:
        if not isinstance(image, ImageRows) or not image.rows.is_cuda:
            return super()._move_rows(image)
        # The reader uses the default stream, and may release the tensor before it has run.
        image.rows.record_stream(torch.cuda.default_stream(image.rows.device))
        with torch.cuda.stream(self._output_stream):
            moved = super()._move_rows(image)
        if self._rows_device is not None and self._rows_device != image.rows.device:
            # A copy to another GPU may still be running, and its source is released on return.
            self._output_stream.synchronize()
        return moved


def make_device_runner(
    model: VisionModel,
    *,
    rows_device: torch.device | None,
    torch_compile: bool | Mapping[str, Any],
    cuda_graphs: bool,
) -> DeviceRunner:
    """Create the runner for a model's device."""
    if rows_device is not None and rows_device.type == "cuda":
        # "cuda" means the current device, which differs in the threads of a runner.
        index = torch.cuda.current_device() if rows_device.index is None else rows_device.index
        rows_device = torch.device("cuda", index)
    if model.device.type != "cuda":
        limit_torch_threads()
        return DeviceRunner(model, rows_device=rows_device, torch_compile=torch_compile)
    return CudaDeviceRunner(
        model, rows_device=rows_device, torch_compile=torch_compile, cuda_graphs=cuda_graphs
    )


def _are_finite(checked: Sequence[CheckedResult]) -> Tensor:
    """Return for each image whether its embeddings are finite; true where it has none.

    Shapes:
        result: [images] bool, on the device of the embeddings.
    """
    flags = [
        torch.isfinite(image.rows).all() if isinstance(image, ImageRows) else None
        for image in checked
    ]
    device = next((flag.device for flag in flags if flag is not None), torch.device("cpu"))
    true = torch.ones((), dtype=torch.bool, device=device)
    return torch.stack([true if flag is None else flag for flag in flags])

"""One copy of a vision model on one device: how a batch gets there, and how its rows come back.

On CUDA a batch is copied from pinned memory on a stream of its own while the one before it still
computes, and computes on a second stream, so that the language model's is not held up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

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

Checked = ImageRows | PluginContractError
"""An image's rows, or what is wrong with them."""


class _Event(Protocol):
    def synchronize(self) -> None: ...


class _Done:
    def synchronize(self) -> None:
        """What computes at once is ready at once."""


class DeviceRunner:
    """Encodes batches on a device that computes when it is told to, such as a CPU.

    Args:
        model: what encodes.
        rows_device: where the rows go; ``None`` leaves them on the model's device.
        torch_compile: compile the tower; options of ``torch.compile``, or true for its defaults.
    """

    num_lanes = 1
    """Batches at a time: more than one where the next can be brought while one computes."""

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

    def __call__(self, inputs: Sequence[Any]) -> list[Checked]:
        """Encode a batch; what is returned is ready to be read from any stream.

        Raises:
            PluginContractError: the model did not give one result for each image.
        """
        with torch.inference_mode():
            pixels = self._bring(inputs) if self._tower is not None else None
            with self._computing() as done:
                results = self._forward(inputs, pixels)
                checked = check_results(self.model, results, len(inputs))
                finite = self._fetch(_are_finite(checked))
            done.synchronize()
            return [
                self._deliver(image) if is_finite else not_finite(self.model)
                for image, is_finite in zip(checked, finite.tolist(), strict=True)
            ]

    def _forward(self, inputs: Sequence[Any], pixels: Tensor | None) -> object:
        if self._tower is None or pixels is None:
            return self.model.forward(inputs)
        return assemble_batch(self.model, self._tower(pixels), inputs)

    def _bring(self, inputs: Sequence[ImageInputs]) -> Tensor:
        """Stack the pixels of a batch on the device, in the model's dtype.

        Shapes:
            result: [tiles of all images, 3, H, W].
        """
        pixels = torch.cat([image.pixels for image in inputs])
        return pixels.to(self.model.device, self.model.dtype)

    @contextmanager
    def _computing(self) -> Iterator[_Event]:
        """Launch what computes; the event comes when all of it has."""
        yield _Done()

    def _fetch(self, values: Tensor) -> Tensor:
        """Bring a few values to the host, where they can be read after the event."""
        return values

    def _deliver(self, image: Checked) -> Checked:
        if self._rows_device is None or isinstance(image, PluginContractError):
            return image
        return replace(image, rows=image.rows.to(self._rows_device))


class CudaDeviceRunner(DeviceRunner):
    """Encodes batches on a CUDA device, one after another on a stream of its own.

    Args:
        model: what encodes.
        rows_device: where the rows go; ``None`` leaves them on the model's device.
        torch_compile: compile the tower; options of ``torch.compile``, or true for its defaults.
        cuda_graphs: record the tower at a few batch sizes, at the first batch of each.
    """

    num_lanes = 2

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
        self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._computes = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._deliveries = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # The weights may still be on their way on the stream of whoever loaded them.
        self._computes.wait_stream(torch.cuda.current_stream(self._device))
        self._launching = threading.Lock()
        if self._tower is not None and cuda_graphs and not model.is_spread:
            self._tower = CudaGraphs(self._tower, CudaRecorder())

    def _bring(self, inputs: Sequence[ImageInputs]) -> Tensor:
        shape = (sum(len(image.pixels) for image in inputs), *inputs[0].pixels.shape[1:])
        pinned = torch.empty(shape, dtype=inputs[0].pixels.dtype, pin_memory=True)
        torch.cat([image.pixels for image in inputs], out=pinned)
        with torch.cuda.stream(self._copies):
            pixels = pinned.to(self._device, non_blocking=True)
            brought = self._copies.record_event()
        brought.synchronize()  # this lane waits; what the other launched computes meanwhile
        return pixels

    @contextmanager
    def _computing(self) -> Iterator[_Event]:
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with self._launching, torch.cuda.stream(self._computes):
            yield done
            done.record()

    def _forward(self, inputs: Sequence[Any], pixels: Tensor | None) -> object:
        if pixels is not None:
            # Its memory came from the stream of the copies and must not go back before it is read.
            pixels.record_stream(self._computes)
            pixels = pixels.to(self.model.dtype)
        return super()._forward(inputs, pixels)

    def _fetch(self, values: Tensor) -> Tensor:
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(
            values, non_blocking=True
        )

    def _deliver(self, image: Checked) -> Checked:
        if isinstance(image, ImageRows) and image.rows.is_cuda:
            # Who reads them does so on the default stream, and may drop them at once.
            image.rows.record_stream(torch.cuda.default_stream(image.rows.device))
        with torch.cuda.stream(self._deliveries):
            return super()._deliver(image)


def make_device_runner(
    model: VisionModel,
    *,
    rows_device: torch.device | None,
    torch_compile: bool | Mapping[str, Any],
    cuda_graphs: bool,
) -> DeviceRunner:
    """Choose the replica for a model's device."""
    if model.device.type != "cuda":
        return DeviceRunner(model, rows_device=rows_device, torch_compile=torch_compile)
    return CudaDeviceRunner(
        model, rows_device=rows_device, torch_compile=torch_compile, cuda_graphs=cuda_graphs
    )


def _are_finite(checked: Sequence[Checked]) -> Tensor:
    """Tell whose rows are all finite; true where there are no rows.

    Shapes:
        result: [images] bool, on the device of the rows.
    """
    flags = [
        torch.isfinite(image.rows).all() if isinstance(image, ImageRows) else None
        for image in checked
    ]
    device = next((flag.device for flag in flags if flag is not None), torch.device("cpu"))
    yes = torch.ones((), dtype=torch.bool, device=device)
    return torch.stack([yes if flag is None else flag for flag in flags])

"""Runs the checks and returns a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.errors import OptionError
from vlcore.testing.check import Check, check_expected_failures
from vlcore.testing.checks import CHECKS
from vlcore.testing.known_models import known_models_of
from vlcore.testing.report import Report, Result
from vlcore.testing.subject import Subject


def check_plugin(
    model: str | Path | Checkpoint | None = None,
    *,
    plugin: str | None = None,
    excused: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    reference: str | Path | None = None,
    serves: Sequence[str] = (),
    tolerance: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    on_result: Callable[[Result], Any] | None = None,
) -> Report:
    """Check a plugin with a checkpoint, or its package only.

    Args:
        model: a directory, a Hub repo id or an opened checkpoint; without one, only the checks of
            the package are run.
        plugin: the distribution name; without one, the plugin that serves the model.
        excused: checks that are expected to fail, by name, each with the reason. If one passes, it
            counts as failed.
        only: names of the checks to run; all if empty.
        reference: a file of :func:`~vlcore.testing.record_reference`.
        serves: names of known models that the plugin serves, beyond those that its package states.
        tolerance: the largest difference between embeddings of a batch and of single images that
            passes, as a share of the largest value; by default 1e-4, and 5e-2 in 16 bits.
        device: the device of the models.
        dtype: dtype of weights and embeddings, as a torch dtype or its name; ``None`` is float32.
        on_result: called with each result as soon as it is known.

    Raises:
        OptionError: a name is unknown, an expected failure has no reason, or there is nothing to
            check.
        NoPluginError: there is no such plugin, or none for the model.
        CheckpointError: the model cannot be read.
    """
    expected_failures = dict(excused or {})
    check_expected_failures(expected_failures, CHECKS)
    selected = _select(only, needs_model=model is not None)
    results = []
    with Subject(
        plugin,
        model,
        reference=reference,
        serves=serves,
        tolerance=tolerance,
        device=device,
        dtype=dtype,
    ) as subject:
        known_models_of(subject.name, serves)  # an unknown name is an error, not a failure
        for check in selected:
            results.append(check.run(subject, expected_failures.get(check.name)))
            if on_result is not None:
                on_result(results[-1])
        name = subject.checkpoint.name if subject.has_checkpoint else ""
        return Report(subject.name, subject.version, name, tuple(results))


def _select(only: Sequence[str], *, needs_model: bool) -> list[Check]:
    known = [check.name for check in CHECKS]
    if unknown := sorted(set(only) - set(known)):
        raise OptionError(
            f"there is no check named {', '.join(unknown)}; the checks are {', '.join(known)}"
        )
    selected = [check for check in CHECKS if not only or check.name in only]
    if needs_model:
        return selected
    if only and (unavailable := [check.name for check in selected if check.needs_model]):
        raise OptionError(f"{', '.join(unavailable)} needs a model: pass one")
    return [check for check in selected if not check.needs_model]

"""Runs the checks, one after another, and reports."""

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
    """Check a plugin with a checkpoint, or its package alone.

    Args:
        model: a directory, a hub id or an opened checkpoint; without one, only what needs none is
            checked.
        plugin: the distribution; without one, the plugin that serves the model.
        excused: checks that may fail, by name, each with the reason. One that passes all the same
            counts as failed.
        only: names of the checks to run; all that apply if there are none.
        reference: a file of :func:`~vlcore.testing.record_reference`.
        serves: names of known models that the plugin serves, beyond those that its package states.
        tolerance: the largest difference between rows of a batch and of single pictures that
            passes, as a share of the largest value; by default 1e-4, and 5e-2 in 16 bits.
        device: where the models run.
        dtype: of weights and rows, as a torch dtype or its name; ``None`` is float32.
        on_result: called with each result as it comes.

    Raises:
        OptionError: a name that is unknown, an excuse without a reason, nothing to check.
        NoPluginError: there is no such plugin, or none for the model.
        CheckpointError: the model cannot be read.
    """
    excuses = dict(excused or {})
    check_expected_failures(excuses, CHECKS)
    chosen = _choose(only, needs_model=model is not None)
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
        known_models_of(subject.name, serves)  # a name that is unknown is an error, not a failure
        for one in chosen:
            results.append(one.run(subject, excuses.get(one.name)))
            if on_result is not None:
                on_result(results[-1])
        name = subject.checkpoint.name if subject.has_checkpoint else ""
        return Report(subject.name, subject.version, name, tuple(results))


def _choose(only: Sequence[str], *, needs_model: bool) -> list[Check]:
    known = {one.name: one for one in CHECKS}
    if unknown := sorted(set(only) - set(known)):
        raise OptionError(
            f"there is no check named {', '.join(unknown)}; the checks are {', '.join(known)}"
        )
    chosen = [one for one in CHECKS if not only or one.name in only]
    if needs_model:
        return chosen
    if only and (too_much := [one.name for one in chosen if one.needs_model]):
        raise OptionError(f"{', '.join(too_much)} needs a model: give one")
    return [one for one in chosen if not one.needs_model]

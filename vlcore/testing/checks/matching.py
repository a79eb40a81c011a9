"""Checks of ``vl_match``: it matches its own checkpoints, and no other models."""

from __future__ import annotations

import copy

from vlcore.hookspecs import SERVES_GROUP
from vlcore.testing.check import check
from vlcore.testing.report import fail
from vlcore.testing.subject import Subject


@check("match-own", "vl_match is True for the checkpoint, and does not modify its config.json")
def match_own(subject: Subject) -> None:
    """Match a copy of the configuration."""
    config = copy.deepcopy(dict(subject.checkpoint.config))
    before = copy.deepcopy(config)
    reason = subject.plugin.mismatch(config, subject.checkpoint.files)
    where = f"vl_match, with config.json of {subject.checkpoint.name}"
    if reason is not None:
        fail(
            expected="True",
            actual=f"no match: {reason}",
            where=where,
            advice="fix vl_match or, if it is wrong, the checkpoint",
        )
    if config != before:
        changed = sorted(key for key in {*config, *before} if config.get(key) != before.get(key))
        fail(
            expected="a configuration that is not modified",
            actual=f"changed values of {', '.join(changed)}",
            where=where,
            advice="work on a copy",
        )


@check(
    "match-siblings",
    "vl_match returns a reason for the config.json of every other known model",
    needs_model=False,
)
def match_siblings(subject: Subject) -> None:
    """Match every known configuration that is not the plugin's."""
    for known_model in subject.other_models:
        config = copy.deepcopy(dict(known_model.config))
        reason = subject.plugin.mismatch(config)
        where = f"vl_match, with the kit's configuration {known_model.name!r}"
        if reason is None:
            fail(
                expected="the reason why the plugin does not serve it",
                actual="True",
                where=where,
                advice=(
                    "match on positive evidence: a known projector and a known vision encoder. If "
                    "the plugin does serve this model, state so in pyproject.toml and install the "
                    f'package again: [project.entry-points."{SERVES_GROUP}"] '
                    f'"{known_model.name}" = "{subject.module_names[0]}". For this run alone, pass '
                    f"serves={known_model.name!r} (--serves)"
                ),
            )
        if reason.startswith("its vl_match "):  # raised, or returned neither True nor a reason
            fail(
                expected="a reason: a string that is not empty",
                actual=reason,
                where=where,
                advice="read values with config.get and check their types",
            )

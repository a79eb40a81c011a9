"""Checks of ``vl_match``: its own checkpoints, and nobody else's."""

from __future__ import annotations

import copy

from vlcore.hookspecs import SERVES_GROUP
from vlcore.testing.check import check
from vlcore.testing.report import fail
from vlcore.testing.subject import Subject


@check("match-own", "vl_match is True for the checkpoint, and leaves its config.json as it was")
def match_own(subject: Subject) -> None:
    """Ask with a copy of the configuration."""
    config = copy.deepcopy(dict(subject.checkpoint.config))
    before = copy.deepcopy(config)
    reason = subject.plugin.mismatch(config, subject.checkpoint.files)
    where = f"vl_match, with config.json of {subject.checkpoint.name}"
    if reason is not None:
        fail(
            expected="True",
            came=f"no match: {reason}",
            where=where,
            advice="mend vl_match; if the checkpoint is not what it should be, mend that",
        )
    if config != before:
        changed = sorted(key for key in {*config, *before} if config.get(key) != before.get(key))
        fail(
            expected="a configuration that is only read",
            came=f"changed values of {', '.join(changed)}",
            where=where,
            advice="work on a copy",
        )


@check(
    "match-siblings",
    "vl_match gives a reason for the config.json of every other known model",
    needs_model=False,
)
def match_siblings(subject: Subject) -> None:
    """Ask about every configuration that the kit ships and that is not the plugin's."""
    for sibling in subject.siblings:
        config = copy.deepcopy(dict(sibling.config))
        reason = subject.plugin.mismatch(config)
        where = f"vl_match, with the kit's configuration {sibling.name!r}"
        if reason is None:
            fail(
                expected="the reason why the plugin does not serve it",
                came="True",
                where=where,
                advice=(
                    "match on positive evidence: a known projector and a known tower. If the "
                    "plugin does serve this model, state so in pyproject.toml and install the "
                    f'package again: [project.entry-points."{SERVES_GROUP}"] '
                    f'"{sibling.name}" = "{subject.module_names[0]}". For this run alone, pass '
                    f"serves={sibling.name!r} (--serves)"
                ),
            )
        if reason.startswith("its vl_match "):  # raised, or returned neither True nor a reason
            fail(
                expected="a reason, as a text that is not empty",
                came=reason,
                where=where,
                advice="read values with config.get and look at their types",
            )

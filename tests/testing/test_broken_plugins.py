"""Plugins that are each wrong in one way: the intended check reports it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_plugins.fault import Broken
from broken_plugins.language import LANGUAGE
from broken_plugins.packages import MATCHES, PACKAGES
from broken_plugins.side_effects import SIDE_EFFECTS
from broken_plugins.templates import TEMPLATES
from broken_plugins.vision import VISION
from distributions import Site, make_site
from patchwork import NAME, install_patchwork, write_patchwork

from vlcore.testing import CHECKS, Outcome, check_plugin
from vlcore.testing.checks import isolation

SLOW = {isolation.no_network.name, isolation.no_remote_code.name, isolation.no_files_written.name}
"""What these need is looked at in a separate process, which takes seconds."""
QUICK = [check.name for check in CHECKS if check.name not in SLOW]
IN_PROCESS = [name for name in QUICK if name not in {"light-import", "quiet-import"}]
"""Those that start no process, for faults of a plugin that is imported as it should be."""
CASES = [*PACKAGES, *MATCHES, *VISION, *TEMPLATES, *LANGUAGE]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patchwork(tmp_path_factory.mktemp("model") / "patchwork")


def install(site: Site, broken: Broken) -> None:
    edits = dict(broken.edits)
    if broken.more:  # more methods of the template
        edits["\n\nTEMPLATE = "] = f"{broken.more}\n\nTEMPLATE = "
    install_patchwork(site, edits, requires=broken.requires, architectures=broken.architectures)


def test_the_plugin_that_is_not_broken_passes_everything(site: Site, checkpoint: Path) -> None:
    install_patchwork(site)
    report = check_plugin(checkpoint, plugin=NAME)
    assert report.ok, report
    others = {result.name for result in report.results if result.outcome is not Outcome.PASSED}
    references = {"reference-rows", "reference-logits", "reference-conversations"}
    videos = {"video-rows", "video-batch", "video-frames", "video-prompt"}  # it takes none
    assert others == references | videos


@pytest.mark.parametrize("broken", CASES, ids=lambda broken: broken.fault)
def test_a_fault_is_found_by_the_check_that_is_meant_for_it(
    site: Site, checkpoint: Path, broken: Broken
) -> None:
    install(site, broken)
    checks = (
        QUICK
        if broken in PACKAGES
        else sorted({*IN_PROCESS, broken.check, *broken.also} - {"rest"})
    )
    report = check_plugin(checkpoint, plugin=NAME, only=checks)
    result = report[broken.check]
    assert result.outcome is Outcome.FAILED, report
    assert result.failure is not None
    assert broken.actual in result.failure.actual, result.failure
    assert all(vars(result.failure).values())
    others = {result.name for result in report.of(Outcome.FAILED)} - {broken.check}
    if "rest" in broken.also:  # other checks are not run, and refer to it
        assert others == set()
        assert all(broken.check in one.reason for one in report.of(Outcome.NOT_RUN))
    else:
        found = {one.name for one in report.of(Outcome.FAILED, Outcome.NOT_RUN)}
        assert found - {broken.check, "answers"} == set(broken.also), report


@pytest.mark.slow
@pytest.mark.parametrize("broken", SIDE_EFFECTS, ids=lambda broken: broken.fault)
def test_a_side_effect_is_found(site: Site, checkpoint: Path, broken: Broken) -> None:
    install(site, broken)
    report = check_plugin(checkpoint, plugin=NAME, only=sorted(SLOW))
    result = report[broken.check]
    assert result.failure is not None
    assert broken.actual in result.failure.actual, result.failure
    assert [one.name for one in report.of(Outcome.FAILED)] == [broken.check]
    rest = report.of(Outcome.NOT_RUN)
    if "rest" in broken.also:  # the plugin could not be used completely
        assert len(rest) == len(SLOW) - 1
        assert all("the conformance kit blocks remote code" in one.reason for one in rest)
    else:
        assert rest == ()

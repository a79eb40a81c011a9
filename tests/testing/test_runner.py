"""A run of the checks: which are run, and what is refused before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributions import Site, make_site
from patchwork import ARCHITECTURE, NAME, install_patchwork, write_patchwork
from weight_files import FakeHub

from vlcore import CheckpointNotFoundError, NoPluginError, OptionError
from vlcore.testing import CHECKS, Outcome, check_plugin
from vlcore.testing.isolation import IsolatedRun


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_patchwork(tmp_path / "patchwork")


def test_without_a_model_the_package_alone_is_checked(site: Site) -> None:
    install_patchwork(site)
    report = check_plugin(plugin=NAME)
    assert report.ok, report
    assert report.model == ""
    assert [r.name for r in report.results] == [c.name for c in CHECKS if not c.needs_model]


def test_the_plugin_of_a_model_is_found(site: Site, checkpoint: Path) -> None:
    install_patchwork(site)
    report = check_plugin(checkpoint, only=["match-own"])
    assert report.ok
    assert (report.plugin, report.version, report.model) == (NAME, "1.0", str(checkpoint))


def test_results_are_reported_one_by_one_in_the_order_of_the_checks(site: Site) -> None:
    install_patchwork(site)
    reported: list[str] = []
    only = ["match-siblings", "entry-point"]
    check_plugin(plugin=NAME, only=only, on_result=lambda result: reported.append(result.name))
    assert reported == ["entry-point", "match-siblings"]


def test_an_expected_failure_leaves_the_report_ok(site: Site) -> None:
    install_patchwork(site, requires=())
    assert not check_plugin(plugin=NAME, only=["requires-vlcore"]).ok
    excused = {"requires-vlcore": "never published"}
    report = check_plugin(plugin=NAME, only=["requires-vlcore"], excused=excused)
    assert report.ok
    assert report["requires-vlcore"].outcome is Outcome.EXCUSED
    assert "requires-vlcore excused: never published" in str(report)


def test_an_expected_failure_that_passes_is_a_failure(site: Site) -> None:
    install_patchwork(site)
    report = check_plugin(plugin=NAME, excused={"requires-vlcore": "never published"})
    assert [result.name for result in report.of(Outcome.FAILED)] == ["requires-vlcore"]


def test_configurations_that_a_plugin_does_serve_are_its_own(site: Site) -> None:
    install_patchwork(site, {'"patch_size" in config': '"visual" in config'})
    assert not check_plugin(plugin=NAME, only=["match-siblings"]).ok
    assert check_plugin(plugin=NAME, only=["match-siblings"], serves=["Qwen-VL-Chat"]).ok


def test_a_package_states_what_it_serves(site: Site) -> None:
    # A name that this kit does not know is another kit's.
    serves = ("Qwen-VL-Chat", "Qwen-9-VL (not known yet)")
    install_patchwork(site, {'"patch_size" in config': '"visual" in config'}, serves=serves)
    assert check_plugin(plugin=NAME).ok


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("Idefics3ForConditionalGeneration", "SmolVLM-Instruct"),
        ("Qwen2VLForConditionalGeneration", "Qwen2-VL-7B-Instruct"),
        ("InternVLChatModel", "InternVL-Chat-V1-5"),
    ],
)
def test_a_model_whose_architecture_one_plugin_registers_is_its_own(
    site: Site, architecture: str, name: str
) -> None:
    match = {'"patch_size" in config': f'config["architectures"] == ["{architecture}"]'}
    install_patchwork(site, match, architectures=[architecture])
    assert check_plugin(plugin=NAME).ok
    install_patchwork(site, match)  # which registers another one
    (failed,) = check_plugin(plugin=NAME).of(Outcome.FAILED)
    assert name in failed.message


@pytest.mark.parametrize(
    ("architecture", "condition", "name"),
    [
        # Others have the architecture too, or another package serves it.
        ("LlavaForConditionalGeneration", '"siglip" in str(config)', "llava-interleave-qwen-7b-hf"),
        ("QWenLMHeadModel", 'config.get("seq_length") == 8192', "Qwen-7B-Chat (text only)"),
        ("LlavaMistralForCausalLM", '"mistral" in str(config)', "llava-v1.6-mistral-7b"),
    ],
)
def test_a_model_that_another_plugin_may_serve_has_to_be_stated(
    site: Site, architecture: str, condition: str, name: str
) -> None:
    match = f'{condition} and config["architectures"] == ["{architecture}"]'
    edits = {'"patch_size" in config': match}
    install_patchwork(site, edits, architectures=[architecture])
    (failed,) = check_plugin(plugin=NAME).of(Outcome.FAILED)
    assert f'[project.entry-points."vlcore.serves"] "{name}" = "' in failed.message
    install_patchwork(site, edits, architectures=[architecture], serves=[name])
    assert check_plugin(plugin=NAME).ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["rows-shapes"]}, "there is no check named rows-shapes; the checks are entry-"),
        ({"excused": {"rows": "x"}}, "there is no check named rows"),
        ({"excused": {"hooks": ""}}, "hooks is excused without a reason"),
        ({"only": ["rows-shape"]}, "rows-shape needs a model: pass one"),
        ({"serves": ["Qwen-VL"]}, "serves names Qwen-VL; the kit knows .*Qwen-VL-Chat"),
        ({"reference": "nowhere.safetensors"}, "nowhere.safetensors cannot be read"),
        ({"device": "tpu"}, "device must be"),
        ({"dtype": "int8"}, "dtype must be"),
    ],
    ids=str,
)
def test_bad_options_are_errors(site: Site, options: dict[str, object], message: str) -> None:
    install_patchwork(site)
    with pytest.raises(OptionError, match=message):
        check_plugin(plugin=NAME, **options)  # type: ignore[arg-type]


def test_nothing_to_check_is_an_error() -> None:
    with pytest.raises(OptionError, match="name a plugin, a checkpoint or both"):
        check_plugin()


def test_a_plugin_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(NoPluginError, match=r"no distribution 'vl-plugin-none' is installed; .*yi"):
        check_plugin(plugin="vl-plugin-none")


def test_a_model_that_is_not_there_is_an_error(site: Site) -> None:
    install_patchwork(site)
    with pytest.raises(CheckpointNotFoundError):
        check_plugin("./nowhere", plugin=NAME)


def test_a_distribution_without_entry_points_fails_and_the_rest_is_not_run() -> None:
    report = check_plugin(plugin="pluggy")
    assert [result.name for result in report.of(Outcome.FAILED)] == [
        "entry-point",
        "requires-vlcore",
    ]
    assert {result.reason for result in report.of(Outcome.NOT_RUN)} == {
        "the plugin registers no architectures: see entry-point"
    }


def test_a_module_that_is_missing_is_found(site: Site) -> None:
    module = site.install("vl-plugin-empty", [ARCHITECTURE], "", requires=["vlcore<0.2"])
    (site.root / module / f"{module}.py").unlink()
    report = check_plugin(plugin="vl-plugin-empty")
    failure = report["entry-point"].failure
    assert failure is not None
    assert failure.actual == f"{module!r}, which Python cannot find"


def test_a_model_of_another_plugin_is_no_match(site: Site, tmp_path: Path) -> None:
    install_patchwork(site)
    other = write_patchwork(tmp_path / "other", "OtherForConditionalGeneration")
    (other / "config.json").write_text('{"architectures": ["OtherForConditionalGeneration"]}')
    failure = check_plugin(other, plugin=NAME, only=["match-own"])["match-own"].failure
    assert failure is not None
    assert failure.actual == "no match: config.json names no patch_size"


def test_a_model_of_the_hub_is_fetched_before_the_network_is_watched(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    install_patchwork(site)
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/model"] = checkpoint

    def watch(plugin: str, module: str, directory: Path, work: Path) -> IsolatedRun:
        assert (plugin, module) == (NAME, site.modules[0])
        assert (directory / "model.safetensors").is_file()
        return IsolatedRun(())

    monkeypatch.setattr("vlcore.testing.subject.run_isolated", watch)
    report = check_plugin("maker/model", only=["no-network"])
    assert report.ok, report
    assert report.model == "maker/model"

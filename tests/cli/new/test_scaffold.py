"""A new plugin package works as it was written."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import resources
from pathlib import Path

import pytest
from distributions import make_site
from new_packages import install_package, write_tiny_checkpoint
from packaging.requirements import Requirement
from typer.testing import CliRunner

import vlcore
from vlcore._version import __version__
from vlcore.cli import app
from vlcore.cli.new.scaffold import PluginNames, render, write_plugin
from vlcore.errors import OptionError
from vlcore.testing import check_plugin

ROOT = Path(__file__).parents[3]
NAMES = PluginNames.parse("vl-plugin-mosaic", "MosaicForConditionalGeneration")
LONG = PluginNames.parse(f"vl-plugin-{'x' * 50}", "M" * 60)
SHORT = PluginNames.parse("q", "Q")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# -- names


@pytest.mark.parametrize(
    ("name", "distribution", "module"),
    [
        ("vl-plugin-mosaic", "vl-plugin-mosaic", "vl_plugin_mosaic"),
        ("VL_Plugin.Mosaic", "vl-plugin-mosaic", "vl_plugin_mosaic"),
        ("my-models", "my-models", "my_models"),
    ],
)
def test_the_module_follows_from_the_name(name: str, distribution: str, module: str) -> None:
    names = PluginNames.parse(name, "Mosaic")
    assert (names.distribution, names.module) == (distribution, module)


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("MosaicForConditionalGeneration", "Mosaic"),
        ("MosaicLlamaForCausalLM", "MosaicLlama"),
        ("MosaicLMHeadModel", "Mosaic"),
        ("Mosaic", "Mosaic"),
        ("ForCausalLM", "ForCausalLM"),
    ],
)
def test_the_family_follows_from_the_architecture(architecture: str, family: str) -> None:
    assert PluginNames.parse("vl-plugin-mosaic", architecture).family == family


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "'' is not a distribution name"),
        ("vl plugin", "'vl plugin' is not a distribution name"),
        ("vl-plugin-", "'vl-plugin-' is not a distribution name"),
        ("../outside", "not a distribution name"),
        ("vl-plugin-ü", "not a distribution name"),
        ("vl-plugin-a\n", "not a distribution name"),
        ("3d", "would be '3d', which Python cannot import"),
        ("class", "would be 'class', which Python cannot import"),
        ("json", "would be 'json', which is taken: choose another .* vl-plugin-json"),
        ("vlcore", "is taken"),
        ("vl-plugin-" + "x" * 60, "name must have at most 60 characters; it has 70"),
    ],
)
def test_a_bad_name(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PluginNames.parse(name, "Mosaic")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("", "expects a class name, .*; received ''"),
        ("Mosaic-7B", "received 'Mosaic-7B'"),
        ("7BMosaic", "received '7BMosaic'"),
        ("Mosaic Model", "received 'Mosaic Model'"),
        ('M" = "os"\nX', "received "),
        ("class", "received 'class'"),
        ("M" * 61, "--architecture must have at most 60 characters"),
    ],
)
def test_a_bad_architecture(architecture: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PluginNames.parse("vl-plugin-mosaic", architecture)


# -- the folder


def test_the_folder_is_named_after_the_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_plugin(NAMES)
    assert {path.parts[0] for path in written} == {"vl-plugin-mosaic"}
    assert written[0].parent == Path("vl-plugin-mosaic")
    found = {path for path in Path("vl-plugin-mosaic").rglob("*") if path.is_file()}
    assert found == set(written)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert write_plugin(NAMES, tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match="is not empty: name another --directory"):
        write_plugin(NAMES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(OptionError, match=r"notes\.txt is a file: name another --directory"):
        write_plugin(NAMES, tmp_path / "notes.txt")
    with pytest.raises(OptionError, match="cannot be written: "):
        write_plugin(NAMES, tmp_path / "notes.txt" / "below")


@pytest.mark.parametrize(
    "arguments",
    [
        ["vl plugin", "--architecture", "Mosaic"],
        ["vl-plugin-mosaic", "--architecture", "Mosaic-7B"],
    ],
)
def test_a_bad_name_writes_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new", *arguments])
    assert isinstance(result.exception, OptionError)
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_is_asked_for() -> None:
    result = CliRunner().invoke(app, ["new", "vl-plugin-mosaic"])
    assert result.exit_code == 2
    assert "--architecture" in result.stderr


# -- what is written


def test_a_whole_package_is_written() -> None:
    assert list(render(NAMES)) == [
        ".gitignore",
        "CHANGELOG.md",
        "README.md",
        "pyproject.toml",
        "tests/test_answers.py",
        "tests/test_conformance.py",
        "tests/tiny_checkpoint.py",
        "vl_plugin_mosaic/__init__.py",
        "vl_plugin_mosaic/language.py",
        "vl_plugin_mosaic/py.typed",
        "vl_plugin_mosaic/template.py",
        "vl_plugin_mosaic/vision.py",
        ".github/workflows/ci.yml",
    ]


def test_the_project_states_the_entry_point_and_this_vlcore() -> None:
    project = tomllib.loads(render(NAMES)["pyproject.toml"])["project"]
    assert project["name"] == "vl-plugin-mosaic"
    assert project["entry-points"]["vlcore.architectures"] == {
        "MosaicForConditionalGeneration": "vl_plugin_mosaic"
    }
    requirements = {one.name: one for one in map(Requirement, project["dependencies"])}
    assert requirements["vlcore"].specifier.contains(__version__)
    assert not requirements["vlcore"].specifier.contains("99")


def test_no_mark_of_a_template_is_left() -> None:
    for name, text in render(NAMES).items():
        marks = re.findall(r"\{[{%#].*|MODULE", text)
        assert marks == (["{{ matrix.python }}"] if name.endswith("ci.yml") else []), name


@pytest.mark.parametrize("names", [NAMES, LONG, SHORT], ids=lambda names: names.distribution[:20])
def test_it_is_clean_for_ruff(names: PluginNames, tmp_path: Path) -> None:
    write_plugin(names, tmp_path / "plain")
    write_plugin(names, tmp_path / "jinja", uses_jinja=True)
    for command in (("check",), ("format", "--check")):
        run(sys.executable, "-m", "ruff", *command, cwd=tmp_path)


def test_the_hooks_import_no_torch() -> None:
    for name, text in render(NAMES).items():
        if name.endswith("__init__.py"):
            imported = {
                alias.name
                for node in ast.parse(text).body
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            assert "torch" not in imported


def test_the_wheel_of_vlcore_brings_the_templates(tmp_path: Path) -> None:
    build = (
        "import sys; from hatchling.builders.wheel import WheelBuilder;"
        "print(next(WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=['standard'])))"
    )
    wheel = run(sys.executable, "-c", build, ROOT, tmp_path, cwd=tmp_path).stdout.strip()
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if "cli/new/package" in name}
    folder = Path(str(resources.files("vlcore"))).parent
    stored = {
        path.relative_to(folder).as_posix()
        for path in (folder / "vlcore/cli/new").glob("package*/**/*")
        if path.is_file()
    }
    assert packed == stored
    assert len(stored) > len(render(NAMES))


@pytest.mark.slow
def test_the_variant_with_a_jinja_template_meets_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in make_site(tmp_path / "site", monkeypatch):
        texts = render(NAMES, uses_jinja=True)
        name = install_package(site, NAMES, texts)
        checkpoint = write_tiny_checkpoint(texts, tmp_path / "checkpoint")
        report = check_plugin(checkpoint, plugin=name)
        assert report.ok, str(report)
        template = vlcore.load_chat_template(checkpoint, plugin=name)
        assert template.render([{"role": "user", "content": "Hi"}]) == "user: Hi</s>assistant:"


# -- in an environment of its own


@pytest.mark.slow
def test_it_installs_passes_its_own_tests_and_is_listed(tmp_path: Path) -> None:
    """The new environment has nothing installed but the plugin, as a wheel.

    vlcore and what both depend on are looked up in the environment that runs this, so that no
    network is needed; that one never hears of the plugin.
    """
    package, environment = tmp_path / "package", tmp_path / "environment"
    result = CliRunner().invoke(
        app,
        [
            "new",
            NAMES.distribution,
            "--architecture",
            NAMES.architecture,
            "--directory",
            f"{package}",
        ],
        catch_exceptions=False,
    )
    assert f"pip install --editable '{package}[test]'" in result.stdout
    assert f"pytest {package}" in result.stdout

    venv.create(environment, with_pip=False)
    variables = {"base": str(environment), "platbase": str(environment)}
    own = Path(sysconfig.get_path("purelib", "venv", vars=variables))
    outer = sysconfig.get_path("purelib")
    (own / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
    python = environment / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    run(python, *install, "--no-build-isolation", package, cwd=tmp_path)

    where = run(python, "-P", "-c", "import vl_plugin_mosaic as p; print(p.__file__)", cwd=package)
    assert where.stdout.startswith(str(own))
    listed = json.loads(run(python, "-P", "-m", "vlcore", "plugins", "--json", cwd=package).stdout)
    (info,) = [one for one in listed if one["distribution"] == NAMES.distribution]
    assert info["state"] == "ready"
    assert info["architectures"] == [NAMES.architecture]

    tested = run(python, "-P", "-m", "pytest", "-p", "no:cacheprovider", cwd=package).stdout
    assert re.search(r"TestConformance: (\d+) checks ran: \1 passed, 0 failed, 0 excused", tested)
    here = run(sys.executable, "-P", "-m", "vlcore", "plugins", "--json", cwd=package).stdout
    assert NAMES.distribution not in here

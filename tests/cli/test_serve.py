from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import vlcore
from vlcore.cli import app, main
from vlcore.errors import ConfigError, EngineUnavailableError, OptionError
from vlcore.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo" / "tiny-llava"


def serve(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServerSettings]:
    """The settings that a server would start with."""
    settings: list[ServerSettings] = []

    def start(pipe: vlcore.Pipeline, given: ServerSettings, bound: socket.socket) -> None:
        bound.close()
        pipe.close()
        settings.append(given)

    monkeypatch.setattr("vlcore.server.serving.serve", start)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    return settings


def test_options_reach_the_settings(served: list[ServerSettings]) -> None:
    result = serve(
        DEMO, "--device", "cpu", "--port", 0, "--api-key", "one", "--api-key", "two",
        "--model-name", "tiny", "--allow-host", "example.org", "--allow-origin",
        "https://example.org", "--max-requests", 3, "--max-body-mib", 5, "--deadline-s", 7,
        "--shutdown-timeout-s", 9,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert served == [
        ServerSettings(
            model_name="tiny",
            port=0,
            api_keys=("one", "two"),
            allowed_hosts=("example.org",),
            allowed_origins=("https://example.org",),
            max_requests=3,
            max_body_bytes=5 * 1024**2,
            deadline_s=7.0,
            shutdown_timeout_s=9.0,
        )
    ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo model with a generation_config.json."""
    directory = tmp_path / "model"
    shutil.copytree(DEMO, directory, copy_function=os.symlink)
    values = {"do_sample": True, "temperature": 0.7, "top_k": 20.0, "top_p": None}
    (directory / "generation_config.json").write_text(json.dumps(values), "utf-8")
    return directory


def test_the_models_sampling_values_are_the_defaults_of_requests(
    served: list[ServerSettings], model: Path
) -> None:
    assert serve(model, "--device", "cpu", "--port", 0).exit_code == 0
    assert serve(model, "--device", "cpu", "--port", 0, "--no-generation-config").exit_code == 0
    assert [settings.sampling_defaults for settings in served] == [
        {"temperature": 0.7, "top_k": 20},
        {},
    ]


def test_an_invalid_sampling_value_stops_the_start_unless_it_is_ignored(
    served: list[ServerSettings], model: Path
) -> None:
    (model / "generation_config.json").write_text('{"top_p": 7}', "utf-8")
    result = serve(model, "--device", "cpu", "--port", 0)
    assert isinstance(result.exception, ConfigError)
    assert "top_p must be" in str(result.exception)
    assert "--no-generation-config" in str(result.exception)
    assert serve(model, "--device", "cpu", "--port", 0, "--no-generation-config").exit_code == 0
    assert len(served) == 1


def test_options_reach_the_pipeline(
    served: list[ServerSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load, given = vlcore.pipeline, {}

    def keep(model: str, **options: Any) -> vlcore.Pipeline:
        given.update(options)
        return load(model, device="cpu")

    monkeypatch.setattr("vlcore.inference.factory.pipeline", keep)
    result = serve(
        DEMO, "--port", 0, "--weights", "int8", "--max-num-seqs", 3, "--session-len", 99,
        "--max-images", 2, "--max-image-mib", 3, "--max-pixels", 400, "--max-decoded-mib", 5,
        "--download-timeout-s", 6, "--connect-timeout-s", 7, "--max-redirects", 0,
        "--no-image-urls", "--allow-image-host", "a.example", "--allow-image-network",
        "10.0.0.0/8", "--allow-image-directory", tmp_path, "--max-prompt-tokens", 80,
        "--max-prompt-chars", 90, "--image-format", "png", "--image-format", "TIFF",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert given["engine_config"] == vlcore.TransformersEngineConfig(
        weights="int8", max_num_seqs=3, session_len=99
    )
    assert given["image_limits"] == vlcore.ImageLimits(
        max_images=2,
        max_bytes=3 * 1024**2,
        max_pixels=400,
        max_decoded_bytes=5 * 1024**2,
        timeout_s=6.0,
        connect_timeout_s=7.0,
        max_redirects=0,
        formats=("PNG", "TIFF"),
    )
    assert given["image_access"] == vlcore.ImageAccess(
        urls=False,
        allowed_hosts=("a.example",),
        allowed_networks=("10.0.0.0/8",),
        allowed_directories=(tmp_path,),
    )
    assert (given["max_prompt_tokens"], given["max_prompt_chars"]) == (80, 90)
    assert serve(DEMO, "--port", 0).exit_code == 0
    assert given["engine_config"] is None
    assert not given["image_access"].trusts_caller
    assert "TIFF" not in given["image_limits"].formats


def test_sigterm_while_the_model_is_loaded_exits_as_an_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_cleaned_up = []

    def load(*_: Any, **__: Any) -> None:
        assert callable(signal.getsignal(signal.SIGTERM))  # otherwise it ends this process
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            has_cleaned_up.append(True)

    monkeypatch.setattr("vlcore.inference.factory.pipeline", load)
    before = signal.getsignal(signal.SIGTERM)
    assert serve(DEMO, "--device", "cpu", "--port", 0).exit_code == 143
    assert has_cleaned_up
    assert signal.getsignal(signal.SIGTERM) is before


def test_keys_come_from_the_environment_too(
    served: list[ServerSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLCORE_API_KEY", "two,three")
    assert serve(DEMO, "--device", "cpu", "--port", 0, "--api-key", "one").exit_code == 0
    assert served[0].api_keys == ("one", "two", "three")
    assert served[0].model_name == "tiny-llava"  # the name does not contain the directory


def test_the_defaults_are_those_of_the_settings(served: list[ServerSettings]) -> None:
    assert serve(DEMO, "--device", "cpu", "--port", 0).exit_code == 0
    assert served == [ServerSettings(model_name="tiny-llava", port=0)]


def test_pillow_does_not_log_about_the_images_of_clients(
    served: list[ServerSettings],
) -> None:
    assert serve(DEMO, "--device", "cpu", "--port", 0).exit_code == 0
    kept: dict[Any, Any] = {}
    warnings.warn_explicit("read 1", UserWarning, "", 1, "PIL.TiffImagePlugin", kept)
    assert "read 1" not in str(kept)
    with pytest.raises(UserWarning, match="ours"):  # here, warnings are errors
        warnings.warn_explicit("ours", UserWarning, "", 1, "vlcore.media.image")
    assert not logging.getLogger("PIL.TiffImagePlugin").isEnabledFor(logging.WARNING)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("vlcore.server.")]:
        monkeypatch.delitem(sys.modules, name)
    error = serve(DEMO).exception
    assert isinstance(error, EngineUnavailableError)
    assert str(error) == "the server needs fastapi: pip install 'vlcore[serve]'"


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid", "not a host"])
def test_a_host_that_is_not_this_machine(host: str) -> None:
    error = serve(DEMO, "--host", host).exception
    assert isinstance(error, OptionError)
    assert str(error).startswith(f"{host}:23333 cannot be listened on (")
    assert "as --host an address of this machine" in str(error)


def test_a_port_in_use_is_reported_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("sys.argv", ["vlcore", "serve", "no-such-model", "--port", str(port)])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: 127.0.0.1:{port} cannot be listened on (Address already in use): choose another "
        "--port, or 0 for a free one, and as --host an address of this machine"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--port", 99999), "port must be in 0..65535; it is 99999"),
        (("--max-requests", 0), "max_requests must be a positive number; it is 0"),
        (
            ("--image-format", "EPS"),
            "formats must be some of AVIF, BMP, GIF, HEIF, JPEG, PNG, PPM, TIFF, WEBP; it is "
            "('EPS',)",
        ),
        (("--api-key", "schl\xfcssel"), "an API key must be printable ASCII and not empty"),
    ],
)
def test_an_option_out_of_range(options: Any, words: str) -> None:
    assert str(serve(DEMO, *options).exception) == words


def test_every_option_is_documented() -> None:
    help_text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    options = set(re.findall(r"--[a-z][a-z-]+", help_text)) - {"--help"}
    page = (ROOT / "docs" / "server.md").read_text("utf-8")
    table = page[page.index("## Options") : page.index("## Limits")]
    assert set(re.findall(r"--[a-z][a-z-]+", table)) == {
        name for name in options if not name.startswith("--no-")
    }

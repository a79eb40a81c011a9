from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vlcore.cli import app
from vlcore.cluster.serve_config import Scale
from vlcore.errors import OptionError


def written(*options: str) -> Any:
    result = CliRunner().invoke(app, ["cluster", "owner/name", "--write", "-", *options])
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.output)


def test_the_configuration_names_the_builder_and_its_arguments() -> None:
    config = written(
        "--port", "8000", "--engine", "transformers", "--set", "engine_config.max_num_seqs=4",
        "--set", "image_access.allowed_hosts=[images.internal]",
    )  # fmt: skip
    (application,) = config["applications"]
    assert application["import_path"] == "vlcore.cluster:build"
    assert application["args"] == {
        "model": "owner/name",
        "engine": "transformers",
        "engine_config": {"max_num_seqs": 4},
        "image_access": {"allowed_hosts": ["images.internal"]},
        "server": {"host": "127.0.0.1", "port": 8000},
    }
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000}


def test_a_deployment_has_a_number_of_replicas_or_a_range() -> None:
    config = written(
        "--encoders", "1:4", "--encoder-gpus", "0.5", "--language-models", "2",
        "--language-model-gpus", "1", "--set", "encoder.max_batch_size=16",
    )  # fmt: skip
    ingress, encoder, language_model = config["applications"][0]["deployments"]
    assert [ingress["name"], encoder["name"], language_model["name"]] == [
        "Ingress",
        "Encoder",
        "LanguageModel",
    ]
    assert encoder["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert encoder["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 16,
    }
    assert "num_replicas" not in encoder
    assert language_model["num_replicas"] == 2
    assert language_model["ray_actor_options"]["num_gpus"] == 1.0


def test_a_directory_is_written_as_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "cluster.yaml"
    result = CliRunner().invoke(app, ["cluster", "model", "--write", str(out)])
    assert result.exit_code == 0, result.output
    args = yaml.safe_load(out.read_text("utf-8"))["applications"][0]["args"]
    assert args["model"] == str(tmp_path / "model")


@pytest.mark.parametrize("replicas", ["", "x", "0", "-1", "3:2", "1:2:3", "1.5"])
def test_what_is_no_number_of_replicas_is_refused(replicas: str) -> None:
    with pytest.raises(OptionError, match="number of replicas"):
        Scale.parse(replicas)


def test_a_negative_fraction_of_a_gpu_is_refused() -> None:
    with pytest.raises(OptionError, match="GPUs"):
        Scale(num_gpus=-0.5)


@pytest.mark.parametrize("setting", ["x", "=1", "server.=1", "model.name=1"])
def test_what_is_no_setting_is_refused(setting: str) -> None:
    result = CliRunner().invoke(app, ["cluster", "x", "--write", "-", "--set", setting])
    assert result.exit_code == 2
    assert "--set" in result.output

"""``vlcore cluster``: a model with encoders and language models that are scaled apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vlcore.cli.options import Dtype, EngineName, Model, ModelName, Plugin, Revision, TemplateName
from vlcore.cli.terminal import echo

_REPLICAS = "Number of replicas, such as 2, or a range for autoscaling, such as 1:4"


def cluster(
    model: Model,
    write: Annotated[
        Path | None,
        typer.Option(
            help="File to write the configuration to instead of running it, for `serve run`, "
            "`serve deploy` or KubeRay. - writes it to standard output."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Ray cluster, such as auto or ray://HEAD:10001. "
            "Default: Ray is started on this machine."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on, on each machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 23333,
    model_name: ModelName = None,
    ingresses: Annotated[str, typer.Option(help=f"{_REPLICAS}, of the HTTP server.")] = "1",
    encoders: Annotated[str, typer.Option(help=f"{_REPLICAS}, of the image encoder.")] = "1",
    language_models: Annotated[
        str, typer.Option(help=f"{_REPLICAS}, of the language model.")
    ] = "1",
    encoder_gpus: Annotated[
        float, typer.Option(help="GPUs of each encoder. With 0.5, two replicas share one.")
    ] = 0.0,
    language_model_gpus: Annotated[float, typer.Option(help="GPUs of each language model.")] = 0.0,
    encoder_cpus: Annotated[
        float, typer.Option(help="CPUs that Ray reserves for each encoder.")
    ] = 1.0,
    language_model_cpus: Annotated[
        float, typer.Option(help="CPUs that Ray reserves for each language model.")
    ] = 1.0,
    engine: EngineName = "auto",
    dtype: Dtype = "auto",
    plugin: Plugin = None,
    chat_template: TemplateName = None,
    revision: Revision = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Further argument of vlcore.cluster:build as NAME=VALUE, such as "
            "server.max_requests=128, encoder.max_batch_size=16, engine_config.max_num_seqs=32 or "
            "image_limits.max_images=4. May be repeated.",
        ),
    ] = None,
) -> None:
    """Serve a model with encoders and language models scaled apart, on Ray Serve.

    Keys for the API are read from the variable VLCORE_API_KEY of each machine.
    """
    from vlcore.cluster.serve_config import Scale, serve_config

    is_directory = Path(model).is_dir()
    args: dict[str, Any] = {"model": str(Path(model).resolve()) if is_directory else model}
    options = {
        "engine": engine,
        "dtype": dtype,
        "plugin": plugin,
        "chat_template": chat_template,
        "revision": revision,
    }
    args |= {name: value for name, value in options.items() if value not in (None, "auto")}
    args["server"] = {"host": host, "port": port}
    if model_name is not None:
        args["server"]["model_name"] = model_name
    _apply_settings(args, setting or ())
    config = serve_config(
        args,
        ingress=Scale.parse(ingresses),
        encoder=Scale.parse(encoders, num_cpus=encoder_cpus, num_gpus=encoder_gpus),
        language_model=Scale.parse(
            language_models, num_cpus=language_model_cpus, num_gpus=language_model_gpus
        ),
    )
    if write is not None:
        _write(config, write)
        return
    from vlcore.cluster.running import deploy, run_here
    from vlcore.server.log_config import set_up_log

    set_up_log()
    if address is None:
        run_here(config)
    else:
        deploy(config, address)


def _apply_settings(args: dict[str, Any], settings: Sequence[str]) -> None:
    """Set values such as ``server.max_requests=128``, read as YAML.

    Raises:
        BadParameter: A setting is not NAME=VALUE, or not a value of YAML.
    """
    for setting in settings:
        name, separator, text = setting.partition("=")
        *groups, last = name.split(".")
        if not separator or not all((*groups, last)):
            raise typer.BadParameter(f"--set takes NAME=VALUE; it is {setting!r}")
        target = args
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise typer.BadParameter(f"--set {setting}: {group} has no settings")
        target[last] = _yaml().safe_load(text)


def _write(config: dict[str, Any], path: Path) -> None:
    text = _yaml().safe_dump(config, sort_keys=False)
    if str(path) == "-":
        echo(text, end="")
    else:
        path.write_text(text, "utf-8")


def _yaml() -> Any:
    """Import PyYAML, which Ray requires.

    Raises:
        EngineUnavailableError: It is not installed.
    """
    from vlcore.errors import EngineUnavailableError

    try:
        import yaml
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            "a cluster needs PyYAML, which is not installed: pip install 'vlcore[ray]'"
        ) from error
    return yaml

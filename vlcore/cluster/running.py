"""``run_here`` and ``deploy``: a configuration of Ray Serve on this machine, or on a cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vlcore._utils.signals import exit_on_sigterm
from vlcore.cluster.environment import environment
from vlcore.cluster.installation import import_ray
from vlcore.cluster.serve_config import APPLICATION
from vlcore.errors import EngineUnavailableError
from vlcore.plugins.stages import ModelStages

logger = logging.getLogger(__name__)

_POLL_S = 0.2


def run_here(config: Mapping[str, Any], *, num_cpus: int | None = None) -> None:
    """Start Ray on this machine, serve until a signal arrives, and stop Ray.

    Args:
        config: The configuration, as :func:`~vlcore.cluster.serve_config.serve_config` returns it.
        num_cpus: Number of CPUs that Ray distributes; ``None`` for those of the machine, or as many
            as the replicas need.

    Raises:
        EngineUnavailableError: Ray is not installed, or the model cannot be served.
        CheckpointError: The checkpoint cannot be read.
        PluginError: No plugin supports the checkpoint, or several do.
    """
    ray = import_ray("ray")
    args = config["applications"][0]["args"]
    ModelStages(  # what no replica could open is an error before Ray is started
        args["model"], plugin=args.get("plugin"), revision=args.get("revision")
    )
    with environment(), exit_on_sigterm():
        try:
            _start(num_cpus or max(os.cpu_count() or 1, _num_cpus(config)))
            with _stop_event() as stopped:
                _serve(config, stopped)
        finally:
            ray.shutdown()


def _start(num_cpus: int) -> None:
    """Start Ray on this machine."""
    try:
        import_ray("ray").init(
            "local",  # without it, Ray would connect to any instance that runs on this machine
            include_dashboard=False,
            num_cpus=num_cpus,
            log_to_driver=True,
            namespace="serve",
        )
    except Exception as error:  # Ray raises bare ones
        raise EngineUnavailableError(f"Ray does not start here: {error}") from error


def _serve(config: Mapping[str, Any], stopped: threading.Event) -> None:
    """Serve on the Ray of this process until it is stopped."""
    _apply(config)
    if _wait_until_running(stopped):
        options = config["http_options"]
        address = import_ray("ray").get_runtime_context().gcs_address
        logger.info("the address of Ray is %s", address)
        logger.info("served at http://%s:%d", options["host"], options["port"])
        stopped.wait()
    logger.info("stopping: running requests are finished first")
    import_ray("ray.serve").shutdown()


def deploy(config: Mapping[str, Any], address: str) -> None:
    """Serve on a running cluster, and return when the model is served.

    Args:
        config: The configuration.
        address: The address of the cluster, such as ``auto`` on one of its machines, or
            ``ray://HEAD:10001``.

    Raises:
        EngineUnavailableError: Ray is not installed, the cluster cannot be reached, or the model
            cannot be served.
    """
    ray = import_ray("ray")
    try:
        ray.init(address=address, namespace="serve", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineUnavailableError(
            f"no Ray cluster can be reached at {address}: {error}"
        ) from error
    try:
        with _stop_event() as stopped:
            _apply(config)
            if _wait_until_running(stopped):
                logger.info("served on the cluster; `serve shutdown` ends it")
    finally:
        ray.shutdown()


def _apply(config: Mapping[str, Any]) -> None:
    """Start Serve if it is not running, and let its controller apply the configuration."""
    import_ray("ray.serve")
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    warn_of_unused_gpus(config, import_ray("ray").cluster_resources().get("GPU", 0.0))
    schema = ServeDeploySchema.model_validate(dict(config))
    client = serve_start(
        http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location
    )
    client.deploy_apps(schema)


def warn_of_unused_gpus(config: Mapping[str, Any], num_gpus: float) -> None:
    """Warn if a cluster has GPUs and all replicas run on CPUs.

    Args:
        config: The configuration.
        num_gpus: Number of GPUs of the cluster.
    """
    deployments = config["applications"][0]["deployments"]
    if num_gpus and not any("num_gpus" in one["ray_actor_options"] for one in deployments):
        logger.warning(
            "the cluster has %g GPUs, and the model runs on CPUs: state the GPUs of each replica, "
            "such as --language-model-gpus 1 --encoder-gpus 0.5",
            num_gpus,
        )


def _wait_until_running(stopped: threading.Event) -> bool:
    """Wait until the application runs; return false if it is stopped before.

    Raises:
        EngineUnavailableError: A deployment cannot start.
    """
    serve = import_ray("ray.serve")
    while not stopped.wait(_POLL_S):
        application = serve.status().applications.get(APPLICATION)
        if application is None:
            continue
        if application.status == "RUNNING":
            return True
        if application.status == "DEPLOY_FAILED":  # others are temporary
            raise EngineUnavailableError(f"the model cannot be served: {_reasons(application)}")
    return False


def _reasons(application: Any) -> str:
    """Return why an application does not run, without tracebacks."""
    messages = [application.message]
    messages += [deployment.message for deployment in application.deployments.values()]
    lines = [message.strip().splitlines()[-1] for message in messages if message.strip()]
    return "; ".join(dict.fromkeys(line.strip() for line in lines))


def _num_cpus(config: Mapping[str, Any]) -> int:
    """Return how many CPUs the largest number of replicas takes."""
    total = 0.0
    for deployment in config["applications"][0]["deployments"]:
        scaling = deployment.get("autoscaling_config", {})
        num_replicas = deployment.get("num_replicas") or scaling["max_replicas"]
        total += num_replicas * deployment["ray_actor_options"]["num_cpus"]
    return int(total + 0.999)


@contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """Return an event that SIGINT and SIGTERM set; a second signal ends the process at once.

    Ray installs handlers of its own when it starts, and so this comes after it.
    """
    stopped = threading.Event()

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stopped.set()

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

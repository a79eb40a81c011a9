"""``serve_config``: a cluster as the configuration that ``serve run`` and KubeRay read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlcore.cluster.arguments import ClusterArguments
from vlcore.errors import OptionError

APPLICATION = "vlcore"
"""Name of the application in the configuration."""


@dataclass(frozen=True)
class Scale:
    """How many replicas a deployment has, and what each of them takes.

    Raises:
        OptionError: A number is out of range.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    """Between these two, Ray Serve adds and removes replicas with the load."""
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    """GPUs of each replica. With 0.5, two replicas share one; 0 hides all GPUs from it."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas == 0:
            raise OptionError(
                "a number of replicas is a positive number such as 2, or a range such as 1:4; it "
                f"is {self.min_replicas}:{self.max_replicas}"
            )
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise OptionError(
                f"a replica cannot have {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"
            )

    @classmethod
    def parse(cls, replicas: str, *, num_cpus: float = 1.0, num_gpus: float = 0.0) -> Scale:
        """Read a number of replicas such as ``2``, or a range such as ``1:4``.

        Raises:
            OptionError: It is neither.
        """
        least, _, most = replicas.partition(":")
        try:
            return cls(int(least), int(most or least), num_cpus, num_gpus)
        except ValueError as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(
                "a number of replicas is a positive number such as 2, or a range such as 1:4; it "
                f"is {replicas!r}"
            ) from error

    def options(self, name: str, target_ongoing_requests: int) -> dict[str, Any]:
        """Return the options of a deployment.

        Args:
            name: The name of the deployment.
            target_ongoing_requests: The number of requests for each replica that autoscaling aims
                at.
        """
        resources: dict[str, float] = {"num_cpus": self.num_cpus}
        if self.num_gpus:
            resources["num_gpus"] = self.num_gpus
        options: dict[str, Any] = {"name": name, "ray_actor_options": resources}
        if self.min_replicas == self.max_replicas:
            return options | {"num_replicas": self.max_replicas}
        return options | {
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": target_ongoing_requests,
            }
        }


def serve_config(
    args: Mapping[str, Any],
    *,
    ingress: Scale,
    encoder: Scale,
    language_model: Scale,
) -> dict[str, Any]:
    """Return the configuration of Ray Serve for a model.

    Args:
        args: The arguments of :func:`vlcore.cluster.build`.
        ingress: Replicas of the HTTP server.
        encoder: Replicas of the image encoder. Autoscaling aims at a batch of images for each.
        language_model: Replicas of the language model.

    Raises:
        OptionError: An argument is unknown, or out of range.
    """
    arguments = ClusterArguments.from_mapping(args)
    settings = arguments.settings
    num_images = int(arguments.encoder.get("max_batch_size", 8))
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.host, "port": settings.port},
        # Otherwise each of the four calls of a request writes a line.
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "vlcore.cluster:build",
                "args": dict(args),
                "deployments": [
                    ingress.options("Ingress", max(1, settings.max_requests // 2)),
                    encoder.options("Encoder", num_images),
                    language_model.options("LanguageModel", 16),
                ],
            }
        ],
    }

"""Encoders and language models on a cluster, each scaled on its own, with Ray.

Ray itself is imported when it is used: ``pip install 'vlcore[ray]'``.
"""

from typing import Any

from vlcore.cluster.installation import import_ray

__all__ = ["build"]


def build(args: dict[str, Any]) -> Any:
    """Compose the application of Ray Serve that ``import_path: vlcore.cluster:build`` names.

    It has three deployments: ``Ingress`` is the HTTP server, without weights, ``Encoder`` encodes
    images, and ``LanguageModel`` generates text. How many replicas each has, on which devices, and
    how many requests they take, are options of the deployments in Serve's configuration.

    Args:
        args: The arguments as a configuration states them; ``model`` is required.

    Returns:
        A ``ray.serve.Application``.

    Raises:
        EngineUnavailableError: Ray is not installed.
        OptionError: An argument is unknown, or out of range.
    """
    import_ray("ray.serve")
    from vlcore.cluster.application import build_application

    return build_application(args)

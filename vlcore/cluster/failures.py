"""Ray's errors as those of vlcore and of the HTTP API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from grpc.aio import AioRpcError
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from vlcore.server.errors import ApiError

logger = logging.getLogger(__name__)


class ReplicaDiedError(Exception):
    """A replica died while it worked on a request, or before."""


@contextmanager
def translated(deployment: str) -> Iterator[None]:
    """Translate the errors of calls of another deployment.

    Args:
        deployment: What the deployment does, for messages.

    Raises:
        ReplicaDiedError: The replica died, or was stopped.
        ApiError: All replicas have as many requests as they take (429), or none can be started
            (503).
        Exception: What the replica raised itself, without Ray's traceback in its text.
    """
    try:
        yield
    except RayTaskError as error:
        logger.error("a replica of the %s failed: %s", deployment, error)
        if isinstance(error.cause, RayError):  # what another one had made is lost
            raise ReplicaDiedError from None
        raise _cause(error) from None
    except BackPressureError:
        raise ApiError(
            429,
            "too_many_requests",
            f"every {deployment} has as many requests as it takes: retry later",
            headers={"Retry-After": "1"},
        ) from None
    except DeploymentUnavailableError:
        raise unavailable(f"no {deployment} can be started") from None
    except TaskCancelledError:
        raise ReplicaDiedError from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():  # the request itself was cancelled
            raise
        raise ReplicaDiedError from None  # Serve tells the end of a stopped replica like this
    except (RayError, AioRpcError) as error:
        logger.warning("a %s is lost: %s", deployment, error)
        raise ReplicaDiedError from None


def unavailable(message: str) -> ApiError:
    """Return the error for a request that another replica can serve in a moment."""
    return ApiError(
        503, "replica_failed", f"{message}: send the request again", headers={"Retry-After": "1"}
    )


def _cause(error: RayTaskError) -> Exception:
    cause: object = error.cause
    return cause if isinstance(cause, Exception) else RuntimeError(str(cause))

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlcore.cluster import running
from vlcore.cluster.running import run_here, warn_of_unused_gpus
from vlcore.cluster.serve_config import Scale, serve_config

DEMO = Path(__file__).parents[2] / "demo" / "tiny-llava"


@pytest.mark.parametrize(
    ("in_cluster", "encoder_gpus", "warns"), [(2, 0.0, True), (2, 0.5, False), (0, 0.0, False)]
)
def test_a_cluster_whose_gpus_are_not_used_is_warned_of(
    caplog: pytest.LogCaptureFixture, in_cluster: float, encoder_gpus: float, warns: bool
) -> None:
    config = serve_config(
        {"model": "any"},
        ingress=Scale(),
        encoder=Scale(num_gpus=encoder_gpus),
        language_model=Scale(),
    )
    warn_of_unused_gpus(config, in_cluster)
    assert ("--language-model-gpus" in caplog.text) is warns


def test_a_signal_while_ray_starts_ends_what_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def start(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    ray = SimpleNamespace(init=start, shutdown=lambda: ended.append(True))
    monkeypatch.setattr(running, "import_ray", lambda _: ray)
    before = signal.getsignal(signal.SIGTERM)
    config = serve_config(
        {"model": str(DEMO)}, ingress=Scale(), encoder=Scale(), language_model=Scale()
    )
    with pytest.raises(SystemExit):
        run_here(config)
    assert ended == [True]
    assert signal.getsignal(signal.SIGTERM) is before

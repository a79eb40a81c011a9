from __future__ import annotations

import pytest

from vlcore.cluster.running import warn_of_unused_gpus
from vlcore.cluster.serve_config import Scale, serve_config


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

from __future__ import annotations

import dataclasses

import pytest

from vlcore.vision.stats import EncoderStats, Meter


def test_a_snapshot_is_frozen_and_does_not_change_later() -> None:
    meter = Meter()
    meter.count("num_images", 3)
    meter.add_time("queue_wait_s", 0.5)
    meter.count_forward(2, 7, 0.25)
    before = meter.stats(num_waiting=4)
    meter.count("num_images")
    meter.count_forward(2, 2, 0.25)
    assert before == EncoderStats(num_images=3, num_forwards=1, num_tiles=7, num_waiting=4)
    assert (before.queue_wait_s, before.forward_s, dict(before.batch_sizes)) == (0.5, 0.25, {2: 1})
    assert meter.stats().batch_sizes == {2: 2}
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.num_images = 5  # type: ignore[misc]


def test_a_snapshot_has_a_one_line_summary() -> None:
    stats = EncoderStats(
        num_images=4, num_cache_hits=1, num_forwards=2, num_encoded=3, forward_s=0.456
    )
    line = "4 image(s), 3 encoded in 2 forward(s), 0.46 s, 1 from the cache"
    assert str(stats) == line
    assert str(dataclasses.replace(stats, num_failures=2)) == f"{line}, 2 failed"

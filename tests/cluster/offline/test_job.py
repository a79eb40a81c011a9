from __future__ import annotations

from vlcore.cluster.offline.job import group_sizes, superseded_names


def test_groups_shrink_to_a_single_image() -> None:
    assert group_sizes(64) == [64, 8, 1]
    assert group_sizes(100) == [100, 12, 1]
    assert group_sizes(1) == [1, 1]


def test_earlier_contents_and_second_copies_are_superseded() -> None:
    shards = {
        "one": {"changed": "old", "same": "key", "elsewhere": "key"},
        "two": {"changed": "new", "twice": "key"},
        "three": {"twice": "key"},
    }
    current = {"changed": "new", "same": "key", "twice": "key", "failed elsewhere": ""}
    assert superseded_names(shards, current) == {"one": {"changed"}, "three": {"twice"}}

from __future__ import annotations

import pytest

from vlcore._utils.sizes import readable_size


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (2048, "2 KiB"),
        (5 * 2**20, "5 MiB"),
        (2**32, "4.0 GiB"),
    ],
)
def test_a_size_has_a_suitable_unit(num_bytes: int, expected: str) -> None:
    assert readable_size(num_bytes) == expected

from __future__ import annotations

import pytest

from vlcore.server.admission import Admission
from vlcore.server.errors import ApiError


def test_one_more_is_told_to_come_again() -> None:
    admission = Admission(2)
    with admission.place(), admission.place():
        with pytest.raises(ApiError, match="max_requests") as failure, admission.place():
            pass
        assert failure.value.status == 429
        assert int(failure.value.headers["Retry-After"]) >= 1
        assert admission.num_requests == 2
    assert admission.num_requests == 0
    with admission.place():
        assert admission.num_requests == 1


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = Admission(1)
    with pytest.raises(ZeroDivisionError), admission.place():
        raise ZeroDivisionError
    assert admission.num_requests == 0


def test_a_server_that_stops_takes_none() -> None:
    admission = Admission(1)
    admission.is_stopping = True
    with pytest.raises(ApiError, match="stopping") as failure, admission.place():
        pass
    assert failure.value.status == 503

from __future__ import annotations

import pytest

from vlcore.server.admission import Admission
from vlcore.server.errors import ApiError


def test_a_request_above_the_bound_receives_429_with_retry_after() -> None:
    admission = Admission(2)
    with admission.permit(), admission.permit():
        with pytest.raises(ApiError, match="max_requests") as failure, admission.permit():
            pass
        assert failure.value.status == 429
        assert int(failure.value.headers["Retry-After"]) >= 1
        assert admission.num_requests == 2
    assert admission.num_requests == 0
    with admission.permit():
        assert admission.num_requests == 1


def test_a_failed_request_releases_its_permit() -> None:
    admission = Admission(1)
    with pytest.raises(ZeroDivisionError), admission.permit():
        raise ZeroDivisionError
    assert admission.num_requests == 0


def test_a_stopping_server_admits_no_request() -> None:
    admission = Admission(1)
    admission.is_stopping = True
    with pytest.raises(ApiError, match="stopping") as failure, admission.permit():
        pass
    assert failure.value.status == 503

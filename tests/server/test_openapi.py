"""Requests made up from the OpenAPI document: no 500, and every answer as it says.

``VLCORE_FUZZ_EXAMPLES`` raises the number of requests that are made up for each path.
"""

from __future__ import annotations

import os
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import load_all_checks
from server_client import GOOD, GOOD_ANSWER, post, request, send

NUM_EXAMPLES = int(os.environ.get("VLCORE_FUZZ_EXAMPLES", "40"))


@pytest.fixture(scope="session")
def made_up(url: str) -> Any:
    document = send(url, request("GET", "/openapi.json")).json()
    # A request that is right but asks for long answers would only take time.
    document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] = ["tiny"]
    return schemathesis.openapi.from_dict(document)


schema = schemathesis.pytest.from_fixture("made_up")


@schema.parametrize()
@hypothesis.settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    database=None,
)
def test_answers_are_as_documented(case: Any, url: str) -> None:
    response = case.call(base_url=url)
    case.validate_response(response)

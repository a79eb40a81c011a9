"""Requests generated from the OpenAPI document: none returns 500, and every response conforms.

``VLCORE_FUZZ_EXAMPLES`` sets the number of random examples per path, in addition to edge cases.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from server_client import GOOD, GOOD_COMPLETION, post, request, send
from waits import TIMEOUT_S

NUM_EXAMPLES = int(os.environ.get("VLCORE_FUZZ_EXAMPLES", "5"))
CONFIG = """
seed = 7
suppress-health-check = ["too_slow"]  # of the machine
continue-on-failure = true
request-timeout = {timeout_s}
[generation]
max-examples = {num_examples}
database = "none"
[phases.stateful]
enabled = false
[checks]
positive_data_acceptance.enabled = false  # the schema allows images and models that do not exist
"""


def test_responses_are_as_documented(url: str) -> None:
    document = send(url, request("GET", "/openapi.json")).json()
    # The document does not contain the name of the model, and any other name returns 404.
    chat = document["components"]["schemas"]["ChatRequest"]["properties"]
    chat["model"]["enum"] = ["tiny"]
    del chat["ignore_eos"]  # long completions would only take time
    config = SchemathesisConfig.from_str(
        CONFIG.format(num_examples=NUM_EXAMPLES, timeout_s=TIMEOUT_S)
    )
    config.projects.default.update(base_url=url)
    num_requests = 0
    num_successful = 0
    faults = []
    for event in from_schema(schemathesis.openapi.from_dict(document, config=config)).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            num_requests += len(event.recorder.cases)
            num_successful += sum(
                interaction.response is not None and interaction.response.status_code == 200
                for interaction in event.recorder.interactions.values()
            )
            faults += [_describe(event, check) for checks in event.recorder.checks.values()
                       for check in checks if check.failure_info is not None]  # fmt: skip
    print(f"{num_requests} requests, {num_successful} returned 200")
    assert not faults, "\n\n".join(faults[:20])
    assert num_requests > 100
    assert num_successful > 10
    assert send(url, post(GOOD)).json()["choices"][0]["message"]["content"] == GOOD_COMPLETION


def _describe(event: events.ScenarioFinished, check: Any) -> str:
    failure = check.failure_info
    return f"{event.label}, {check.name}: {failure.failure}\n{failure.code_sample}"

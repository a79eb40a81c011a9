"""Requests made up from the OpenAPI document: no 500, and every answer as it says.

``VLCORE_FUZZ_EXAMPLES`` sets how many are drawn for each path, beside those at its limits.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from server_client import GOOD, GOOD_ANSWER, post, request, send

NUM_EXAMPLES = int(os.environ.get("VLCORE_FUZZ_EXAMPLES", "5"))
CONFIG = """
seed = 7
continue-on-failure = true
request-timeout = 60
[generation]
max-examples = {num_examples}
database = "none"
[phases.stateful]
enabled = false
[checks]
positive_data_acceptance.enabled = false  # a picture or model that the schema allows is not there
"""


def test_answers_are_as_documented(url: str) -> None:
    document = send(url, request("GET", "/openapi.json")).json()
    # The name of the model is no part of the document, and every other one is answered with 404.
    chat = document["components"]["schemas"]["ChatRequest"]["properties"]
    chat["model"]["enum"] = ["tiny"]
    del chat["ignore_eos"]  # long answers would only take time
    config = SchemathesisConfig.from_str(CONFIG.format(num_examples=NUM_EXAMPLES))
    config.projects.default.update(base_url=url)
    num_requests = 0
    num_answered = 0
    faults = []
    for event in from_schema(schemathesis.openapi.from_dict(document, config=config)).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            num_requests += len(event.recorder.cases)
            num_answered += sum(
                interaction.response is not None and interaction.response.status_code == 200
                for interaction in event.recorder.interactions.values()
            )
            faults += [_describe(event, check) for checks in event.recorder.checks.values()
                       for check in checks if check.failure_info is not None]  # fmt: skip
    print(f"{num_requests} requests, {num_answered} answered with 200")
    assert not faults, "\n\n".join(faults[:20])
    assert num_requests > 100
    assert num_answered > 10
    assert send(url, post(GOOD)).json()["choices"][0]["message"]["content"] == GOOD_ANSWER


def _describe(event: events.ScenarioFinished, check: Any) -> str:
    failure = check.failure_info
    return f"{event.label}, {check.name}: {failure.failure}\n{failure.code_sample}"

from __future__ import annotations

from vlcore.engines.transformers.prefill_pace import PrefillPace


def test_the_first_chunk_is_small() -> None:
    pace = PrefillPace()
    assert pace.max_tokens(2048) == 32
    assert pace.max_tokens(20) == 20
    pace.record_step(0.1)
    assert pace.max_tokens(2048) == 32


def test_a_chunk_takes_about_two_steps() -> None:
    pace = PrefillPace()
    pace.record_step(0.1)
    pace.record_prompts(32, 0.064)  # 2 ms for each token
    assert pace.max_tokens(2048) == 100
    assert pace.max_tokens(60) == 60


def test_a_chunk_never_becomes_very_small() -> None:
    pace = PrefillPace()
    pace.record_step(0.001)
    pace.record_prompts(100, 10.0)
    assert pace.max_tokens(2048) == 32


def test_prompts_of_few_tokens_measure_nothing() -> None:
    pace = PrefillPace()
    pace.record_step(0.1)
    pace.record_prompts(3, 0.1)  # the time is that of reading the weights
    assert pace.max_tokens(2048) == 32
    pace.record_prompts(100, 0.1)
    assert pace.max_tokens(2048) == 200


def test_the_pace_follows_the_machine() -> None:
    pace = PrefillPace()
    pace.record_step(0.1)
    for _ in range(30):
        pace.record_prompts(100, 0.1)
    for _ in range(30):
        pace.record_prompts(100, 0.2)
    assert 100 <= pace.max_tokens(2048) <= 101

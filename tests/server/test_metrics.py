from __future__ import annotations

from server.wire import ask, exchange, metric, outcomes, post

from vlcore.server.serving import Server


def test_requests_and_tokens_are_counted(server: Server) -> None:
    names = ("prompt", "image", "answer")

    def tokens() -> list[float]:
        return [metric(server, f'vlcore_tokens_total{{kind="{name}"}}') for name in names]

    good, bad, before = outcomes(server, "ok"), outcomes(server, "invalid_json"), tokens()
    firsts = metric(server, "vlcore_time_to_first_token_seconds_count")
    assert exchange(server, post(ask(max_tokens=5, ignore_eos=True)))[0] == 200
    assert exchange(server, post(b"{"))[0] == 400
    prompt, image, answer = (
        after - earlier for after, earlier in zip(tokens(), before, strict=True)
    )
    assert (image, answer) == (0, 5)
    assert prompt > 5
    assert outcomes(server, "ok") == good + 1
    assert outcomes(server, "invalid_json") == bad + 1
    assert metric(server, "vlcore_time_to_first_token_seconds_count") == firsts + 1
    assert metric(server, "vlcore_active_requests") == 0

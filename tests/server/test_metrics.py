from __future__ import annotations

from server.wire import chat_body, metric, outcomes, post, send_and_read
from waits import wait_for

from vlcore.server.serving import Server


def test_requests_and_tokens_are_counted(server: Server) -> None:
    kinds = ("prompt", "image", "answer")

    def tokens() -> list[float]:
        return [metric(server, f'vlcore_tokens_total{{kind="{kind}"}}') for kind in kinds]

    good, bad, before = outcomes(server, "ok"), outcomes(server, "invalid_json"), tokens()
    num_first_tokens = metric(server, "vlcore_time_to_first_token_seconds_count")
    assert send_and_read(server, post(chat_body(max_tokens=5, ignore_eos=True)))[0] == 200
    assert send_and_read(server, post(b"{"))[0] == 400
    prompt, image, completion = (
        after - earlier for after, earlier in zip(tokens(), before, strict=True)
    )
    assert (image, completion) == (0, 5)
    assert prompt > 5
    # A request is counted, and its permit released, after its client has received the response.
    wait_for(lambda: outcomes(server, "ok") == good + 1)
    wait_for(lambda: outcomes(server, "invalid_json") == bad + 1)
    assert metric(server, "vlcore_time_to_first_token_seconds_count") == num_first_tokens + 1
    wait_for(lambda: metric(server, "vlcore_active_requests") == 0)


def test_reused_prompt_tokens_are_counted(server: Server) -> None:
    names = ("vlcore_engine_prompt_tokens_total", "vlcore_engine_cached_tokens_total")
    for _ in range(2):
        before = [metric(server, name) for name in names]
        assert send_and_read(server, post(chat_body(max_tokens=5, ignore_eos=True)))[0] == 200
    prompt, cached = (
        metric(server, name) - earlier for name, earlier in zip(names, before, strict=True)
    )
    assert prompt > 5
    assert cached == prompt - 1
    assert metric(server, "vlcore_kept_tokens") >= 0

"""A video file passes through the pipeline, sessions, the commands and the server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from server.conftest import running
from server.wire import metric
from server_client import post, send, text_part
from transformers_families.checkpoints import write_checkpoint
from typer.testing import CliRunner
from video_files import video_file

import vlcore
from vlcore import VideoError
from vlcore.cli import app

pytest.importorskip("av", reason="the extra vlcore[video] is not installed")
pytestmark = pytest.mark.slow

GREEDY = {"max_new_tokens": 4, "skip_special_tokens": False}
TEXT = "What happens?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("videos") / "model"
    write_checkpoint(directory, "qwen2_5_vl")
    return directory


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(video_file(40, size=(96, 64), fps=8))
    return path


@pytest.fixture
def pipe(checkpoint: Path) -> Iterator[vlcore.Pipeline]:
    with vlcore.pipeline(checkpoint, device="cpu", dtype="float32") as pipe:
        yield pipe


def part(source: Any, **options: Any) -> list[dict[str, Any]]:
    content = [{"type": "video", "video": source, **options}, {"type": "text", "text": TEXT}]
    return [{"role": "user", "content": content}]


def data_url(clip: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"


def test_every_source_of_a_video_gives_the_same_response(pipe: vlcore.Pipeline, clip: Path) -> None:
    frames = list(vlcore.load_video(clip).frames[::4])
    prompts = [
        (TEXT, str(clip)),
        (clip, TEXT),
        part(clip.as_uri()),
        part(clip.read_bytes()),
        part(data_url(clip)),
        part(frames, fps=2),
        part(vlcore.load_video(clip, vlcore.VideoSampling(num_frames=10))),
    ]
    responses = pipe(prompts, GREEDY)
    assert len({response.raise_for_error().token_ids for response in responses}) == 1
    # Ten frames, two for each position in time, of 56 x 84 pixels.
    assert [response.video_token_len for response in responses] == [5 * 2 * 3] * len(prompts)
    fewer = pipe(part(clip, num_frames=4), GREEDY)
    assert (fewer.video_token_len, fewer.image_token_len) == (2 * 2 * 3, 0)


def test_a_video_is_neither_encoded_nor_computed_again(pipe: vlcore.Pipeline, clip: Path) -> None:
    first = pipe((TEXT, clip), GREEDY)
    again = pipe(("What happened before?", clip), GREEDY)
    assert first.cached_tokens == 0
    assert again.cached_tokens > again.video_token_len
    assert pipe.encoder_stats().num_encoded == 1


def test_a_session_keeps_its_videos(pipe: vlcore.Pipeline, clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    session = pipe.chat(part(copy, fps=1), gen_config=GREEDY)
    copy.unlink()
    session = pipe.chat(("And this?", Image.new("RGB", (64, 64), "red")), session, GREEDY)
    assert session.response is not None
    assert session.response.video_token_len == 2 * 2 * 3
    assert session.response.image_token_len > 0
    assert pipe.encoder_stats().num_encoded == 2


def test_a_damaged_video_fails_alone(pipe: vlcore.Pipeline, clip: Path) -> None:
    damaged = clip.read_bytes()[:400]
    good, bad, text = pipe([(TEXT, clip), part(damaged), "Hello"], GREEDY)
    assert isinstance(bad.error, VideoError)
    assert "video 1 of 1" in str(bad.error)
    assert good.error is None
    assert text.error is None


def test_the_commands_take_videos(checkpoint: Path, clip: Path, pipe: vlcore.Pipeline) -> None:
    expected = pipe((TEXT, clip), {"max_new_tokens": 4}).text
    options = [str(checkpoint), "--max-new-tokens", "4", "--dtype", "float32"]
    once = CliRunner().invoke(app, ["chat", *options, TEXT, "--video", str(clip)])
    typed = CliRunner().invoke(app, ["chat", *options], input=f"/video {clip}\n{TEXT}\n")
    assert once.stdout == typed.stdout == f"{expected}\n"
    explained = CliRunner().invoke(
        app, ["explain", str(checkpoint), TEXT, "--video", str(clip), "--json"]
    )
    (video,) = json.loads(explained.stdout)["images"]
    assert (video["num_frames"], video["width"], video["num_rows"]) == (10, 96, 30)
    shown = CliRunner().invoke(app, ["explain", str(checkpoint), TEXT, "--video", str(clip)])
    assert f"video 0  {clip}, 10 frames of 96 x 64, 30 embeddings" in shown.stdout


def test_the_server_takes_videos(checkpoint: Path, clip: Path) -> None:
    pipe = vlcore.pipeline(checkpoint, device="cpu", dtype="float32")
    with running(pipe) as server:
        url = "http://{}:{}".format(*server.address)

        def ask(**options: Any) -> Any:
            video = {"type": "video_url", "video_url": {"url": data_url(clip)} | options}
            messages = [{"role": "user", "content": [video, text_part(TEXT)]}]
            body = {"model": "tiny", "messages": messages, "max_tokens": 4, "temperature": 0}
            return send(url, post(body)).json()

        details = ask()["usage"]["prompt_tokens_details"]
        assert (details["video_tokens"], details["image_tokens"]) == (30, 0)
        assert ask(num_frames=4)["usage"]["prompt_tokens_details"]["video_tokens"] == 12
        assert ask(url=data_url(clip)[:600])["error"]["code"] == "invalid_video"
        assert ask(fps=-1)["error"]["code"] == "invalid_option"
        assert metric(server, 'vlcore_tokens_total{kind="video"}') == 42

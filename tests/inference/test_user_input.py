from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlcore.errors import PromptError
from vlcore.inference.user_input import is_batch, parse_prompt
from vlcore.media.undecoded_video import UndecodedVideo
from vlcore.media.video import Video
from vlcore.prompts.conversation import Conversation, read_conversation
from vlcore.prompts.messages import ImageSlot, Message, Text

IMAGE = Image.new("RGB", (2, 2))
OTHER = Image.new("RGB", (3, 3))


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def test_a_text_is_one_message() -> None:
    assert parse_prompt("hello") == Conversation((Message("user", (Text("hello"),)),))


@pytest.mark.parametrize("prompt", ["a/b.png", "https://example.org/a.png", "<image>"])
def test_a_text_alone_is_never_an_image(prompt: str) -> None:
    assert parse_prompt(prompt).images == ()


# -- pairs


@pytest.mark.parametrize("image", [IMAGE, b"bytes", Path("a.png"), [IMAGE]])
def test_pairs_are_read_in_both_orders(image: Any) -> None:
    images = tuple(image) if isinstance(image, list) else (image,)
    for pair in (("hello", image), (image, "hello")):
        conversation = parse_prompt(pair)
        assert conversation.messages == (Message("user", (ImageSlot(0), Text("hello"))),)
        assert conversation.images == images


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_images_come_before_the_text(kind: type[Any]) -> None:
    conversation = parse_prompt(("hello", kind([IMAGE, "b.png"])))
    assert conversation.messages[0].content == (ImageSlot(0), ImageSlot(1), Text("hello"))
    assert conversation.images == (IMAGE, "b.png")
    assert parse_prompt(("hello", kind([]))).images == ()


def test_of_two_texts_the_url_is_the_image() -> None:
    for url in ("http://x/a.png", "https://x/a.png", "data:image/png;base64,", "file:///a.png"):
        for pair in (("hello", url), (url, "hello")):
            conversation = parse_prompt(pair)
            assert conversation.images == (url,)
            assert conversation.messages[0].text == "hello"


def test_of_two_texts_the_file_is_the_image(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.touch()
    for pair in (("hello", str(file)), (str(file), "hello")):
        assert parse_prompt(pair).images == (str(file),)


def test_of_two_plain_texts_the_second_is_the_image() -> None:
    conversation = parse_prompt(("hello", "absent.png"))
    assert conversation.images == ("absent.png",)
    assert conversation.messages[0].text == "hello"


def test_of_two_images_the_second_is_the_image() -> None:
    assert parse_prompt(("https://x/a.png", "https://x/b.png")).images == ("https://x/b.png",)


def test_a_text_that_cannot_be_a_path_is_a_text() -> None:
    for odd in ("x" * 5000, "a\0b", "~no_such_user/a"):
        assert parse_prompt((odd, IMAGE)).messages[0].text == odd
        assert parse_prompt((odd, "https://x/a.png")).messages[0].text == odd


@pytest.mark.parametrize("pair", [(), ("a",), ("a", IMAGE, IMAGE)])
def test_a_pair_has_two_items(pair: Any) -> None:
    with pytest.raises(PromptError, match=f"has {len(pair)} items"):
        parse_prompt(pair)


@pytest.mark.parametrize("pair", [(IMAGE, IMAGE), (None, IMAGE), ([IMAGE], [IMAGE])])
def test_a_pair_needs_a_text(pair: Any) -> None:
    with pytest.raises(PromptError, match="one item of a pair must be the text"):
        parse_prompt(pair)


# -- messages


@pytest.mark.parametrize(
    ("part", "image"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x/a.png"}}, "https://x/a.png"),
        ({"type": "image_url", "image_url": "a.png"}, "a.png"),
        ({"type": "image", "image": IMAGE}, IMAGE),
        ({"type": "image", "image": Path("a.png")}, Path("a.png")),
        ({"type": "image", "image": b"bytes"}, b"bytes"),
        ({"type": "image_url", "image_url": {"url": IMAGE}}, IMAGE),
    ],
)
def test_image_parts_accept_images_in_every_form(part: dict[str, Any], image: Any) -> None:
    conversation = parse_prompt([user(text("a"), part, text("b"))])
    assert conversation.images == (image,)
    assert conversation.messages[0].content == (Text("a"), ImageSlot(0), Text("b"))


def test_images_of_several_messages_keep_their_order() -> None:
    conversation = parse_prompt(
        [
            {"role": "system", "content": "be kind"},
            user({"type": "image", "image": IMAGE}, text("a")),
            {"role": "assistant", "content": [text("b")]},
            user(text("c"), {"type": "image", "image": OTHER, "detail": "low"}),
        ]
    )
    assert conversation.images == (IMAGE, OTHER)
    assert conversation.messages[3].content == (Text("c"), ImageSlot(1, options={"detail": "low"}))
    assert conversation.image_options == [{}, {"detail": "low"}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": None},
        {"type": "image", "image": 5},
    ],
)
def test_an_image_part_needs_an_image(part: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="image part in message 0 has no image"):
        parse_prompt([user(text("a"), part)])


@pytest.mark.parametrize(
    "prompt", [5, None, b"bytes", {"role": "user"}, IMAGE, ["a", {"role": "user"}], ["a"]]
)
def test_any_other_prompt_is_rejected(prompt: Any) -> None:
    with pytest.raises(PromptError, match=rf"\({type(prompt).__name__}\)$"):
        parse_prompt(prompt)


def test_a_conversation_is_not_read_again() -> None:
    conversation = parse_prompt(("hello", IMAGE))
    assert parse_prompt(conversation) is conversation
    assert read_conversation(conversation) is conversation
    assert not is_batch(conversation)


def test_messages_are_checked() -> None:
    with pytest.raises(PromptError, match="message 0 needs content"):
        parse_prompt([{"role": "user"}])


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a", False),
        (("a", IMAGE), False),
        ([{"role": "user", "content": "a"}], False),
        ([], True),
        (["a"], True),
        ([("a", IMAGE), [{"role": "user", "content": "a"}]], True),
        (["a", {"role": "user", "content": "a"}], True),
    ],
)
def test_a_list_of_prompts_differs_from_a_list_of_messages(prompts: Any, expected: bool) -> None:
    assert is_batch(prompts) is expected


# -- appending


def test_images_of_an_appended_conversation_are_renumbered() -> None:
    first = parse_prompt(("a", [IMAGE, OTHER]))
    reply = Conversation((Message("assistant", (Text("b"),)),))
    low = {"type": "image", "image": "c.png", "detail": "low"}
    whole = first + reply + parse_prompt([user(low, text("c"))])
    assert whole.images == (IMAGE, OTHER, "c.png")
    assert [message.content for message in whole.messages] == [
        (ImageSlot(0), ImageSlot(1), Text("a")),
        (Text("b"),),
        (ImageSlot(2, options={"detail": "low"}), Text("c")),
    ]
    assert whole.image_options == [{}, {}, {"detail": "low"}]
    assert first.messages[0].content[0] == ImageSlot(0)


# -- videos

CLIP = Video((IMAGE,), (0.0,), 1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        ("clip.MP4", UndecodedVideo("clip.MP4")),
        (Path("clip.webm"), UndecodedVideo(Path("clip.webm"))),
        ("https://example.org/a.mov?x=1", UndecodedVideo("https://example.org/a.mov?x=1")),
        ("data:video/mp4;base64,AAAA", UndecodedVideo("data:video/mp4;base64,AAAA")),
        (CLIP, CLIP),
    ],
)
def test_a_video_of_a_pair_is_known_by_its_name(media: Any, expected: Any) -> None:
    conversation = parse_prompt(("What happens?", [media, "a.png"]))
    assert conversation.images == (expected, "a.png")
    assert [slot.kind for slot in conversation.slots] == ["video", "image"]
    assert parse_prompt((media, "What happens?")).images == (expected,)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "video", "video": "clip"}, UndecodedVideo("clip")),
        ({"type": "video", "path": "clip"}, UndecodedVideo("clip")),
        ({"type": "video_url", "video_url": "clip"}, UndecodedVideo("clip")),
        ({"type": "video_url", "video_url": {"url": "clip"}}, UndecodedVideo("clip")),
        (
            {"type": "video_url", "video_url": {"url": "clip", "fps": 1, "scale": 3}},
            UndecodedVideo("clip", {"fps": 1}),
        ),
        (
            {"type": "video", "video": b"x", "num_frames": 2},
            UndecodedVideo(b"x", {"num_frames": 2}),
        ),
        (
            {"type": "video", "video": [IMAGE, "a.png"]},
            UndecodedVideo((IMAGE, "a.png"), {"fps": 2}),
        ),
        ({"type": "video", "video": [IMAGE], "fps": 5}, UndecodedVideo((IMAGE,), {"fps": 5})),
        ({"type": "video", "video": CLIP}, CLIP),
    ],
)
def test_parts_of_videos(part: dict[str, Any], expected: Any) -> None:
    conversation = parse_prompt([user(part, text("What happens?"))])
    assert conversation.images == (expected,)
    assert getattr(conversation.images[0], "sampling", None) == getattr(expected, "sampling", None)
    (slot,) = conversation.slots
    others = {"scale": 3} if "scale" in str(part) else {}
    assert (slot.kind, slot.options) == ("video", others)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "video"}, "the video part in message 0 has no video"),
        ({"type": "video", "video": []}, "the video part in message 0 has no video"),
        ({"type": "video", "video": IMAGE}, "the video part in message 0 has no video"),
        ({"type": "video", "video": CLIP, "fps": 1}, "not sampled again: leave out fps"),
        (
            {"type": "video", "video": [IMAGE], "num_frames": 1, "position": "middle"},
            "leave out num_frames, position",
        ),
    ],
)
def test_a_part_without_a_video_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_prompt([user(part)])

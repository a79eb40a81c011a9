from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from browser import ask, chromium, give
from playwright.sync_api import Browser, Page, expect
from qwen_checkpoints import write_pointing_qwen
from server.conftest import DEMO, running
from waits import TIMEOUT_S, until, wait_for

import vlcore
from vlcore.errors import EngineClosedError
from vlcore.inference.response import Response

pytestmark = pytest.mark.slow

IMAGES = DEMO / "images"
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
COLOUR = "What colour is the circle?"
_REFUSED = re.compile(r"Failed to load resource: the server responded with a status of 400 ")
DESCRIBE = "Describe the picture."
DESCRIPTION = "a large red circle and a small blue square"


expect.set_options(timeout=1000 * TIMEOUT_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open the page; it must log nothing and send requests to the server alone.

    The browser itself logs refused requests.
    """
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(1000 * TIMEOUT_S)
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        expect(page.locator("#model")).to_have_text("tiny")
        yield page
        assert not [fault for fault in faults if not _REFUSED.match(fault)]
        assert requested
        external = [link for link in requested if not link.startswith((f"{url}/", "data:"))]
        assert not external


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with visiting(browser, url) as page:
        yield page


class HeldDeltas:
    """Lets the server send some deltas of each completion, and the next when the test allows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._allowed = threading.Semaphore(0)
        astream_infer = vlcore.Pipeline.astream_infer

        async def held(
            self_: vlcore.Pipeline, *args: Any, **options: Any
        ) -> AsyncIterator[Response]:
            async with aclosing(astream_infer(self_, *args, **options)) as deltas:
                async for delta in deltas:
                    await until(lambda: self._allowed.acquire(blocking=False))
                    yield delta

        monkeypatch.setattr(vlcore.Pipeline, "astream_infer", held)

    def allow(self, num_deltas: int) -> None:
        self._allowed.release(num_deltas)


@pytest.fixture
def deltas(monkeypatch: pytest.MonkeyPatch) -> HeldDeltas:
    return HeldDeltas(monkeypatch)


def count_active(url: str) -> int:
    metrics = httpx2.get(f"{url}/metrics").text
    (count,) = re.findall(r"^vlcore_active_requests (\d+)", metrics, re.MULTILINE)
    return int(count)


def save_screenshot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_two_prompts_about_a_dropped_image(page: Page) -> None:
    give(page, "drop", IMAGES / "circle_and_square.png")
    expect(page.locator("#tray img")).to_have_count(1)
    ask(page, DESCRIBE)
    completions = page.locator(".completion")
    expect(completions.locator(".text")).to_have_text(DESCRIPTION)
    expect(completions.locator(".timing")).to_have_text(
        re.compile(r"^\d+ tokens · [\d.]+ tokens/s · first token after \d+ ms$")
    )
    expect(page.locator("#tray img")).to_have_count(0)
    expect(page.locator(".prompt img")).to_have_count(1)
    ask(page, COLOUR)
    expect(completions.nth(1).locator(".text")).to_have_text("red")
    expect(completions.nth(1).locator(".timing")).to_contain_text("first token after")
    save_screenshot(page, "conversation")
    page.get_by_role("button", name="New conversation").click()
    expect(completions).to_have_count(0)
    expect(page.get_by_role("heading", name="Ask about an image")).to_be_visible()


def test_a_completion_is_shown_while_it_is_generated(page: Page, deltas: HeldDeltas) -> None:
    give(page, "drop", IMAGES / "circle_and_square.png")
    ask(page, DESCRIBE)
    text = page.locator(".completion .text")
    seen = [""]
    for _ in range(3):
        deltas.allow(2)
        expect(text).not_to_have_text(seen[-1])
        seen.append(text.text_content() or "")
    deltas.allow(100)
    expect(page.locator(".completion .timing")).to_contain_text("tokens")
    seen.append(text.text_content() or "")
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert len(set(seen)) == 5
    assert seen[-1] == DESCRIPTION


@pytest.mark.parametrize("way", ["button", "key"])
def test_stopping_frees_the_request(page: Page, url: str, deltas: HeldDeltas, way: str) -> None:
    give(page, "drop", IMAGES / "circle_and_square.png")
    ask(page, DESCRIBE)
    deltas.allow(3)
    expect(page.locator(".completion .text")).not_to_be_empty()
    assert count_active(url) == 1
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".completion .timing")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    text = page.locator(".completion .text").text_content() or ""
    assert text
    assert DESCRIPTION.startswith(text)
    assert text != DESCRIPTION
    wait_for(lambda: not count_active(url))


def test_pasted_images_keep_their_order_and_can_be_removed(page: Page) -> None:
    names = ["tower.png", "circle_and_square.png", "triangle.png"]
    give(page, "paste", *(IMAGES / name for name in names))
    thumbnails = page.locator("#tray img")
    expect(thumbnails).to_have_count(3)
    assert [thumbnail.get_attribute("alt") for thumbnail in thumbnails.all()] == names
    page.get_by_role("button", name="Remove tower.png").click()
    page.get_by_role("button", name="Remove triangle.png").click()
    ask(page, COLOUR)
    expect(page.locator(".completion .text")).to_have_text("red")


def test_image_files_are_accepted_and_others_refused(page: Page) -> None:
    page.get_by_label("Images", exact=True).set_input_files(IMAGES / "tower.png")
    expect(page.locator("#tray img")).to_have_count(1)
    give(page, "drop", IMAGES / "questions.json", media_type="application/json")
    expect(page.get_by_role("alert")).to_have_text("Not an image: questions.json")


def test_shift_enter_inserts_a_line_break(page: Page) -> None:
    field = page.get_by_label("Your prompt")
    field.press_sequentially("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    expect(field).to_have_value("one\ntwo")
    expect(page.locator(".turn")).to_have_count(0)


def test_an_error_is_shown_and_the_prompt_is_kept(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    give(page, "drop", broken)
    ask(page, COLOUR)
    error = page.locator(".completion .error")
    expect(error).to_be_visible()
    expect(page.get_by_label("Your prompt")).to_have_value(COLOUR)
    expect(page.locator("#tray img")).to_have_count(1)
    page.get_by_role("button", name="Remove broken.png").click()
    give(page, "drop", IMAGES / "circle_and_square.png")
    page.get_by_label("Your prompt").press("Enter")
    expect(page.locator(".completion .text").nth(1)).to_have_text("red")


def test_html_in_a_completion_stays_text(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    html = "<img src=x onerror=alert(1)><b>bold</b><script>alert(2)</script>"

    async def hostile(*_: Any, **__: Any) -> AsyncIterator[Response]:
        yield Response(
            text=html, generate_token_len=3, input_token_len=1, index=0, finish_reason="stop"
        )

    monkeypatch.setattr(vlcore.Pipeline, "astream_infer", hostile)
    ask(page, html)
    expect(page.locator(".completion .text")).to_have_text(html)
    expect(page.locator(".prompt .text")).to_have_text(html)
    assert page.locator(".text *").count() == 0


def test_copied_commands_run(page: Page, url: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    system = 'It\'s a "quoted" $HOME `date` \\ back\\slash, JSON\nand ü.'
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System message").fill(system)
    give(page, "drop", IMAGES / "circle_and_square.png")
    ask(page, DESCRIBE)
    expect(page.locator(".completion .timing")).to_contain_text("tokens")
    expected = page.locator(".completion .text").text_content()
    copied = {}
    for name in ("as curl", "as Python"):
        page.get_by_role("button", name=name).click()
        expect(page.locator("#code")).to_contain_text("abbreviated")
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied[name] = page.evaluate("navigator.clipboard.readText()")
        page.get_by_role("button", name="Close").click()
    ran = subprocess.run(
        ["bash", "-c", copied["as curl"]], capture_output=True, text=True, check=True
    )
    events = re.findall(r"^data: (\{.*\})$", ran.stdout, re.MULTILINE)
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == expected
    sent = json.loads(copied["as curl"].split("<<'JSON'\n")[1].rpartition("JSON")[0])
    assert sent["messages"][0] == {"role": "system", "content": system}
    ran = subprocess.run(
        [sys.executable, "-"], input=copied["as Python"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == expected


def test_code_is_copied_without_the_clipboard_api(browser: Browser, url: str) -> None:
    with browser.new_context() as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.add_init_script(
            """window.clipboard = navigator.clipboard;
            Object.defineProperty(navigator, "clipboard", { value: undefined });"""
        )
        page.goto(url)
        ask(page, "How many objects are there?")
        expect(page.locator(".completion .timing")).to_contain_text("token")
        page.get_by_role("button", name="as curl").click()
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_focused()
        copied = page.evaluate("window.clipboard.readText()")
        assert copied == page.locator("#code").text_content()
        assert page.locator("dialog textarea").count() == 0
        page.evaluate("document.execCommand = () => false")
        page.get_by_role("button", name="Copied").click()
        expect(page.get_by_role("button", name="The browser refused to copy")).to_be_visible()


def test_an_error_within_a_stream_is_shown_below_the_text(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any, **__: Any) -> AsyncIterator[Response]:
        yield Response(text="so far", generate_token_len=1, input_token_len=1, index=0)
        raise EngineClosedError("the engine was closed")

    monkeypatch.setattr(vlcore.Pipeline, "astream_infer", fails)
    ask(page, COLOUR)
    expect(page.locator(".completion .error")).to_contain_text("the server is stopping")
    expect(page.locator(".completion .text")).to_have_text("so far")
    expect(page.get_by_label("Your prompt")).to_have_value(COLOUR)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_boxes_are_drawn_over_the_image(browser: Browser, tmp_path: Path) -> None:
    pipe = vlcore.pipeline(write_pointing_qwen(tmp_path / "pointing"), device="cpu")
    with running(pipe) as server:
        host, port = server.address
        with visiting(browser, f"http://{host}:{port}") as page:
            give(page, "drop", IMAGES / "circle_and_square.png")
            ask(page, "Where is the dog?")
            box = page.locator(".regions .box")
            expect(box).to_have_text("dog")
            image, drawn = page.locator(".regions img").bounding_box(), box.bounding_box()
            assert image
            assert drawn
            shares = (
                (drawn["x"] - image["x"]) / image["width"],
                (drawn["y"] - image["y"]) / image["height"],
                drawn["width"] / image["width"],
                drawn["height"] / image["height"],
            )
            assert shares == pytest.approx((0.1, 0.2, 0.6, 0.6), abs=0.01)
            save_screenshot(page, "boxes")


def test_the_key_is_requested_and_kept_in_the_tab(browser: Browser) -> None:
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    with running(pipe, api_keys=("open sesame",), max_body_bytes=4096) as server:
        host, port = server.address
        with browser.new_context() as context:
            page = context.new_page()
            page.set_default_timeout(1000 * TIMEOUT_S)
            page.goto(f"http://{host}:{port}")
            for key, reason in (("wrong", "an API key is required"), ("open sesame", "is wrong")):
                expect(page.locator("#key-reason")).to_contain_text(reason)
                page.get_by_role("textbox", name="API key").fill(key)
                page.get_by_role("button", name="Continue").click()
            expect(page.locator("#model")).to_have_text("tiny")
            ask(page, "How many objects are there?")
            expect(page.locator(".completion .timing")).to_contain_text("token")
            assert page.evaluate("localStorage.length") == 0
            page.get_by_role("button", name="as curl").click()
            expect(page.locator("#code")).to_contain_text("Bearer $VLCORE_API_KEY")
            expect(page.locator("#code")).not_to_contain_text("sesame")
            page.get_by_role("button", name="Close").click()
            give(page, "drop", IMAGES / "large.png")
            ask(page, COLOUR)
            expect(page.locator(".completion .error")).to_contain_text("max_body_bytes")


CONTRAST = """(element) => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  let behind = element;
  while (channels(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const both = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
  const [darker, lighter] = both.map(luminance).sort((first, second) => first - second);
  return (lighter + 0.05) / (darker + 0.05);
}"""
"""The contrast ratio of an element's text, as WCAG 2.2 defines it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(
    browser: Browser, url: str, scheme: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    with visiting(browser, url, color_scheme=scheme) as page:
        page.get_by_role("button", name="Settings").click()
        ask(page, COLOUR)
        expect(page.locator(".completion .timing")).to_contain_text("token")
        give(page, "drop", broken)
        ask(page, COLOUR)
        expect(page.locator(".completion .error")).to_be_visible()
        texts = page.locator("body *:visible").filter(has_text=re.compile(r"\S"))
        leaves = [
            element
            for element in texts.all()
            if element.evaluate("(e) => e.childElementCount") == 0
        ]
        assert len(leaves) > 12
        faint = {
            element.text_content(): ratio
            for element in leaves
            if (ratio := element.evaluate(CONTRAST)) < 4.5
        }
        assert not faint


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser: Browser, url: str, scheme: Any) -> None:
    size: Any = {"width": 360, "height": 640}
    with visiting(browser, url, viewport=size, color_scheme=scheme) as page:
        give(page, "drop", IMAGES / "circle_and_square.png")
        page.get_by_role("button", name="Settings").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("button", name="Settings").click()
        ask(page, COLOUR)
        expect(page.locator(".completion .text")).to_have_text("red")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        save_screenshot(page, f"phone_{scheme}")

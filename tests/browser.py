"""A headless Chromium, and actions on the web page."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_GIVE = """([files, kind]) => {
  const transfer = new DataTransfer();
  for (const [name, type, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  const options = { bubbles: true, cancelable: true };
  const event = kind === "paste"
    ? new ClipboardEvent(kind, { ...options, clipboardData: transfer })
    : new DragEvent(kind, { ...options, dataTransfer: transfer });
  document.querySelector("main").dispatchEvent(event);
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser; if none is installed, skip the test, but fail in CI."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        reason = f"no browser is installed (one of {', '.join(_NAMES)}): make browser"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_OPTIONS))
        yield browser
        browser.close()


def give(page: Page, kind: str, *paths: Path, media_type: str = "image/png") -> None:
    """Drop or paste files."""
    files = [
        (path.name, media_type, base64.b64encode(path.read_bytes()).decode()) for path in paths
    ]
    page.evaluate(_GIVE, [files, kind])


def ask(page: Page, prompt: str) -> None:
    """Enter a prompt and send it."""
    page.get_by_label("Your prompt").fill(prompt)
    page.get_by_label("Your prompt").press("Enter")

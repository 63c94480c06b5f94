"""Debian's Chromium, driven by Playwright, for tests that look at pages; without it they skip."""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from tests.serving import ROOT

GANS = {
    name: {"file": str(ROOT / "default" / "models" / f"{name}.safetensors"), "name": name.title(), "warmup": False}
    for name in ("faces", "glyphs")
}
ENGINE = {"engine": {"threads": 1}}
"""For the servers of such tests: a core is left for the browser."""
LINGERING = {"engine": {"threads": 1, "linger": 60.0}}
"""For a server that another takes the place of: it finds the engine at work."""
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
PATIENCE = 60_000.0
"""Milliseconds that a condition may take to come true on a slow machine."""
expect.set_options(timeout=PATIENCE)
PIXELS = """async image => {
    await image.decode();
    const canvas = Object.assign(document.createElement('canvas'), {width: image.naturalWidth, height: image.naturalHeight});
    canvas.getContext('2d').drawImage(image, 0, 0);
    return canvas.toDataURL('image/png');
}"""


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield chromium
        finally:
            chromium.close()


@contextlib.contextmanager
def context(chromium: Browser, url: str, **options: Any) -> Iterator[BrowserContext]:
    """A browser that knows nothing yet, on the studio of the server at ``url``. Errors in the page's console fail the test."""
    faults: list[str] = []
    made = chromium.new_context(base_url=f"{url}/ui/", viewport=options.pop("viewport", {"width": 1280, "height": 800}), **options)
    made.set_default_timeout(PATIENCE)
    made.on("weberror", lambda error: faults.append(str(error.error)))
    made.on("console", lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None)
    try:
        yield made
    finally:
        made.close()
    assert not faults, faults


def pixels(image: Locator) -> Any:
    """What an ``<img>`` or a ``<canvas>`` shows, in its own resolution: (H, W, 3)."""
    image.wait_for()
    told = image.evaluate("it => it.toDataURL()" if image.evaluate("it => it.tagName") == "CANVAS" else PIXELS)
    return decode(base64.b64decode(told.partition(",")[2]))


def decode(data: bytes) -> Any:
    """What a picture's file shows: (H, W, 3)."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def fetch(page: Page, path: str) -> Any:
    """The same picture from the server's own route."""
    answer = page.request.get(path)
    assert answer.ok, answer.text()
    return decode(answer.body())


def until(page: Page, condition: Callable[[], bool], what: str = "it did not come true") -> None:
    """Waits as the page's time passes, which stands still while this process sleeps."""
    end = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < end, what
        page.wait_for_timeout(50)


def shows(image: Locator, wanted: Any, off: int = 0) -> None:
    """Waits until an ``<img>`` or a ``<canvas>`` shows just that, or what is ``off`` by so many 8-bit steps."""

    def same() -> bool:
        found = pixels(image)
        return bool(found.shape == wanted.shape and abs(found - wanted).max() <= off)

    until(image.page, same, "another picture is shown")

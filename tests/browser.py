"""Debian's Chromium, driven by Playwright, for tests that look at pages; without it they skip."""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

from tests.serving import ROOT

GANS = {
    name: {"file": str(ROOT / "default" / "models" / f"{name}.safetensors"), "name": name.title(), "warmup": False}
    for name in ("glyphs", "faces")
}
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
PATIENCE = 60_000.0
"""Milliseconds that a condition may take to come true on a slow machine."""
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
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(told.partition(",")[2]))).convert("RGB")).astype(int)


def fetch(page: Page, path: str) -> Any:
    """The same picture from the server's own route."""
    answer = page.request.get(path)
    assert answer.ok, answer.text()
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB")).astype(int)

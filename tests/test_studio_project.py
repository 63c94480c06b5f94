"""The studio's search for a picture, in a real browser against the real server with the default faces."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser import context, fetch, needs_chromium, pixels, shows, until
from tests.serving import Running

pytestmark = needs_chromium


@pytest.fixture
def page(chromium: Browser, studio: Running) -> Iterator[Page]:
    with context(chromium, studio.url) as opened:
        made = opened.new_page()
        made.goto("#/project")
        made.get_by_label("Steps, as a number").wait_for()
        yield made


def drop(page: Page, picture: Any) -> None:
    """As if the picture came from the desktop."""
    page.evaluate(
        """async bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'photograph.png', {type: 'image/png'}));
            document.querySelector('.drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        list(encode(picture)),
    )


def encode(picture: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_dropped_photograph_is_found_and_edited(page: Page) -> None:
    sought, typical = fetch(page, "/faces/image?seed=21&noise=none"), fetch(page, "/faces/image?seed=3&psi=0.1&noise=none")
    wide = np.concatenate([sought * 0, sought, sought * 0], axis=1)  # of which the middle square counts
    drop(page, wide)
    assert np.array_equal(pixels(page.get_by_role("img", name="What is sought")), sought)
    search = page.get_by_role("region", name="Search")
    expect(search).to_have_count(0)
    page.get_by_label("Steps, as a number").fill("80")
    page.get_by_role("button", name="Find").click()
    expect(search.get_by_role("button", name="Edit the result")).to_be_visible()
    found = pixels(search.get_by_role("button").get_by_role("img"))
    assert np.abs(found - sought).mean() < 0.5 * np.abs(typical - sought).mean()
    expect(search).to_contain_text("dB")
    expect(search).to_have_count(1)

    search.get_by_role("button", name="Edit the result").click()
    expect(page).to_have_url(re.compile("#/edit/faces"))
    shown = page.get_by_role("img", name="The edited picture")
    shows(shown, found)
    page.get_by_role("slider", name="Direction 1", exact=True).fill("2.5")
    until(page, lambda: not np.array_equal(pixels(shown), found), "the picture changes")


def test_a_search_shows_how_far_it_is_survives_a_reload_and_is_cancelled(page: Page) -> None:
    drop(page, fetch(page, "/faces/image?seed=21"))
    page.get_by_role("img", name="What is sought").wait_for()
    page.get_by_label("Steps, as a number").fill("600")
    page.keyboard.press("Control+Enter")
    search = page.get_by_role("region", name="Search")
    expect(search.get_by_role("status")).to_contain_text(re.compile(r"Step \d+ of 6"))
    page.reload()
    expect(search.get_by_role("status")).to_contain_text(re.compile(r"Step \d+ of 6"))
    expect(search.get_by_role("img", name="What it looks like so far")).to_be_visible()
    page.keyboard.press("Escape")
    expect(search.get_by_role("status")).to_contain_text("Cancelled")
    search.get_by_role("button", name="Take away").click()
    expect(search).to_have_count(0)


def test_a_file_that_is_no_picture_is_told(page: Page) -> None:
    page.get_by_label("A picture file").set_input_files({"name": "x.txt", "mimeType": "text/plain", "buffer": b"words"})
    expect(page.get_by_text("This file is no picture that the browser can read.")).to_be_visible()

"""The studio's page for diffusion models, in a real browser against a real server with a tiny random pipeline."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import LINGERING, context, decode, needs_chromium, pixels
from tests.serving import Running, serve, write_config
from tests.tiny_pipelines import save

pytestmark = needs_chromium
LONG = 150  # steps of a picture that is not to be finished before the test has done something to it


@pytest.fixture
def page(chromium: Browser, gallery: Running) -> Iterator[Page]:
    with context(chromium, gallery.url) as opened:
        made = opened.new_page()
        made.goto("#/prompt")
        yield made


def ask(page: Page, prompt: str, *, steps: int, seed: int = 5, count: int = 1) -> Locator:
    """Fills the form and sends it by the keyboard; the place where its pictures appear."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("textbox", name="Seed").fill(str(seed))
    page.get_by_role("radiogroup", name="Pictures").get_by_text(str(count), exact=True).click()
    if not page.get_by_label("Steps, as a number").is_visible():
        page.get_by_text("Steps, guidance, scheduler").click()
    page.get_by_label("Steps, as a number").fill(str(steps))
    page.keyboard.press("Control+Enter")
    return page.get_by_role("region", name=prompt)


def start_from(page: Page, picture: Any) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    page.get_by_label("A picture file").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.get_by_role("img", name="The picture to start from").wait_for()


def noise(seed: int = 3) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)


def test_words_become_the_pictures_that_the_server_makes_of_them(page: Page, gallery: Running) -> None:
    images = ask(page, "a red face", steps=3, count=2).get_by_role("button").get_by_role("img")
    expect(images).to_have_count(2)
    for place in range(2):
        body = {"prompt": "a red face", "steps": 3, "seed": 5 + place}
        (wanted,) = gallery.client.post("/text2img/", json=body).json()["images"]
        assert np.array_equal(pixels(images.nth(place)), decode(base64.b64decode(wanted)))


def test_progress_is_told_and_previewed_and_survives_a_reload(page: Page) -> None:
    job = ask(page, "a slow face", steps=LONG, count=4)
    expect(job.get_by_role("status").filter(has_text="Step").first).to_be_visible()
    preview = pixels(job.get_by_role("img", name="What it looks like so far").first)
    assert preview.std() > 0
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a slow face")
    pictures = job.get_by_role("button").get_by_role("img")
    expect(pictures).to_have_count(4)
    assert pixels(pictures.last).shape == (32, 32, 3)


def test_one_job_is_cancelled_and_the_others_go_on(page: Page) -> None:
    first = ask(page, "one", steps=LONG)
    second = ask(page, "two", steps=LONG, count=4)
    expect(second.get_by_role("listitem")).to_have_count(4)
    page.keyboard.press("Escape")
    expect(second.get_by_text("Cancelled")).to_have_count(4)
    expect(first.get_by_role("button").get_by_role("img")).to_be_visible()
    expect(second.get_by_role("img")).to_have_count(0)


def test_a_picture_to_start_from_changes_what_is_made(page: Page) -> None:
    start_from(page, noise(1))
    first = pixels(ask(page, "from noise", steps=4).get_by_role("button").get_by_role("img"))
    page.get_by_role("button", name="Do without").click()
    start_from(page, noise(2))
    second = pixels(ask(page, "from another", steps=4).get_by_role("button").get_by_role("img"))
    assert first.shape == second.shape == (32, 32, 3)
    assert (first != second).mean() > 0.5


def test_a_pasted_picture_is_taken(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).wait_for()
    page.get_by_role("button", name="Start from a picture").wait_for()
    page.evaluate("""async () => {
        const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 32});
        canvas.getContext('2d').fillRect(0, 0, 32, 32);
        const blob = await new Promise(done => canvas.toBlob(done));
        const data = new DataTransfer();
        data.items.add(new File([blob], 'x.png', {type: 'image/png'}));
        dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}));
    }""")
    start = pixels(page.get_by_role("img", name="The picture to start from"))
    assert start.shape == (32, 64, 3)  # of its shape, and as small as the model can


@pytest.mark.parametrize(("width", "height"), [(90, 60), (40, 200)])
def test_a_picture_to_start_from_keeps_its_shape(page: Page, width: int, height: int) -> None:
    side = min(width, height) // 2
    picture = np.zeros((height, width, 3), np.uint8)
    left, top = (width - side) // 2, (height - side) // 2
    picture[top : top + side, left : left + side] = 255  # a square in the middle
    start_from(page, picture)
    shown = pixels(page.get_by_role("img", name="The picture to start from"))
    rows, columns = (np.flatnonzero((shown.mean(axis=2) > 127).any(axis=axis)) for axis in (1, 0))
    assert abs(len(rows) - len(columns)) <= 1
    assert abs(rows[0] + rows[-1] + 1 - shown.shape[0]) <= 1
    assert abs(columns[0] + columns[-1] + 1 - shown.shape[1]) <= 1

    page.get_by_label("Brush, as a number").fill("8")
    canvas = page.get_by_label("Mask: what is painted is made anew")
    drag(page, canvas, (0.4, 0.5), (0.6, 0.5))
    mask = painted(canvas)
    made = pixels(ask(page, "in its shape", steps=2).get_by_role("button").get_by_role("img"))
    assert mask.shape == made.shape[:2] == shown.shape[:2]
    changed = (made != shown).any(axis=2)
    assert changed.any()
    assert not changed[mask == 0].any()


def drag(page: Page, canvas: Locator, *places: tuple[float, float]) -> None:
    """A stroke through places that count from 0 to 1."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def painted(canvas: Locator) -> Any:
    """Where the mask is, (H, W)."""
    return np.array(
        canvas.evaluate("""it => {
        const {data} = it.getContext('2d').getImageData(0, 0, it.width, it.height);
        return Array.from({length: it.height}, (_, y) => Array.from({length: it.width}, (_, x) => data[4 * (y * it.width + x) + 3]));
    }""")
    )


def test_a_mask_repaints_inside_and_only_inside(page: Page) -> None:
    picture = noise(4)
    start_from(page, picture)
    canvas = page.get_by_label("Mask: what is painted is made anew")
    page.get_by_label("Brush, as a number").fill("8")
    drag(page, canvas, (0.2, 0.3), (0.4, 0.3))
    once = painted(canvas)
    drag(page, canvas, (0.5, 0.9), (0.9, 0.9))
    assert (painted(canvas) > 0).sum() > (once > 0).sum()
    page.get_by_role("button", name="Undo").click()
    assert np.array_equal(painted(canvas), once)
    page.get_by_role("button", name="Eraser").click()
    drag(page, canvas, (0.4, 0.3), (0.4, 0.35))
    mask = painted(canvas)
    assert 0 < (mask > 0).sum() < (once > 0).sum()
    page.get_by_label("Change, as a number").fill("1")
    made = pixels(ask(page, "repaired", steps=4).get_by_role("button").get_by_role("img"))
    changed = (made != picture).any(axis=2)
    assert not changed[mask == 0].any()
    assert changed[mask == 255].mean() > 0.9


def test_a_job_outlives_the_server_that_took_it(chromium: Browser, tmp_path: Path) -> None:
    models = {"words": {"file": str(save("sd", tmp_path)), "warmup": False}}
    config = write_config(tmp_path, models, LINGERING)
    with serve(config) as running, context(chromium, running.url) as opened:
        page = opened.new_page()
        page.goto("#/prompt")
        job = ask(page, "a patient face", steps=LONG, count=4)
        expect(job.get_by_role("status").filter(has_text="Step").first).to_be_visible()
        running.stop()
        expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
        with serve(config, port=running.port):
            expect(job.get_by_role("button").get_by_role("img")).to_have_count(4)
            expect(page.get_by_role("alert")).to_have_count(0)

"""The studio's page of walks between pictures, in a real browser against the real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from PIL import Image, ImageSequence
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import context, needs_chromium, shows
from tests.serving import Running

pytestmark = needs_chromium


@pytest.fixture
def page(chromium: Browser, gallery: Running) -> Iterator[Page]:
    """A walk of two seconds, five frames each, that stands still at its beginning."""
    with context(chromium, gallery.url) as opened:
        made = opened.new_page()
        made.goto("#/walk/faces")
        expect(key(made, 4)).to_be_visible()
        made.get_by_role("button", name="Pause").click()
        fill(made, "Seconds, as a number", "2")
        fill(made, "Frames a second, as a number", "5")
        expect(made.get_by_text("10 frames", exact=True)).to_be_visible()
        yield made


def fill(page: Page, label: str, value: str) -> None:
    page.get_by_label(label).fill(value)
    page.get_by_label(label).press("Tab")


def key(page: Page, number: int) -> Locator:
    return page.get_by_role("region", name="Key pictures").get_by_role("button", name=f"Key picture {number}, seed")


def seeds(page: Page) -> list[int]:
    names = page.get_by_role("region", name="Key pictures").get_by_role("button", name="Key picture ").all()
    return [
        int((one.get_attribute("aria-label") or "").rpartition(" ")[2])
        for one in names
        if "seed" in (one.get_attribute("aria-label") or "")
    ]


def walked(gallery: Running, seeds: Sequence[int], frames: int = 10, loop: bool = True) -> list[Any]:
    """The frames that the route makes, (H, W, 3) each."""
    styles = [gallery.client.post("/faces/generate", params={"seed": seed, "psi": 0.7}).json()["style"] for seed in seeds]
    body = {"styles": styles, "frames": frames, "fps": 5, "loop": loop, "seed": seeds[0], "format": "apng"}
    return read(base64.b64decode(gallery.client.post("/faces/interpolate", json=body).json()["data"]))


def read(data: bytes) -> list[Any]:
    with Image.open(io.BytesIO(data)) as film:
        return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(film)]


def previews(page: Page, frame: int, wanted: Any) -> None:
    """Waits until the preview shows that at a frame, but for the rounding of styles: one 8-bit step."""
    page.get_by_role("slider", name="Frame", exact=True).fill(str(frame))
    shows(page.get_by_role("img", name="The walk"), wanted, off=1)


def test_the_preview_is_the_walk_that_the_route_makes(page: Page, gallery: Running) -> None:
    frames = walked(gallery, seeds(page))
    assert not np.array_equal(frames[0], frames[3])
    for place in (0, 3, 7, 9):
        previews(page, place, frames[place])
    page.get_by_text("One way", exact=True).click()
    previews(page, 9, walked(gallery, seeds(page), loop=False)[9])


def test_it_plays(page: Page) -> None:
    frame = page.get_by_role("slider", name="Frame", exact=True)
    before = frame.input_value()
    page.get_by_role("button", name="Play").click()
    expect(frame).not_to_have_value(before)
    page.get_by_role("heading", name="Walk").click()
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_space_presses_the_button_that_has_the_focus(page: Page) -> None:
    key(page, 2).focus()
    page.keyboard.press(" ")
    page.get_by_role("dialog", name="Key picture 2").wait_for()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_key_pictures_are_chosen_moved_and_taken_away(page: Page, gallery: Running) -> None:
    key(page, 2).click()
    page.get_by_role("dialog").get_by_label("Seed").fill("41")
    page.keyboard.press("Enter")
    expect(key(page, 2)).to_have_accessible_name("Key picture 2, seed 41")
    order = seeds(page)
    key(page, 1).drag_to(key(page, 3))
    expect(key(page, 3)).to_have_accessible_name(f"Key picture 3, seed {order[0]}")
    key(page, 3).focus()
    page.keyboard.press("Alt+ArrowLeft")
    expect(key(page, 2)).to_have_accessible_name(f"Key picture 2, seed {order[0]}")
    key(page, 4).click()
    page.get_by_role("button", name="Take it away").click()
    expect(key(page, 4)).to_have_count(0)
    now = seeds(page)
    assert now == [41, order[0], order[2]]
    previews(page, 5, walked(gallery, now)[5])


@pytest.mark.parametrize("name", ["WebP", "GIF", "APNG", "MP4"])
def test_a_walk_is_exported(page: Page, gallery: Running, tmp_path: Path, name: str) -> None:
    page.get_by_role("radiogroup", name="Format").get_by_text(name, exact=True).click()
    with page.expect_download() as told:
        page.get_by_role("button", name="Export").click()
    assert told.value.suggested_filename == f"faces-walk.{name.lower()}"
    told.value.save_as(tmp_path / "film")
    data = (tmp_path / "film").read_bytes()
    if name == "MP4":
        assert data[4:8] == b"ftyp"
        return
    found, wanted = read(data), walked(gallery, seeds(page))
    assert len(found) == len(wanted) == 10
    for one, other in zip(found, wanted, strict=True):
        assert abs(one - other).mean() < 6  # 256 colours a frame at worst


def test_a_reload_loses_no_film(page: Page, gallery: Running, tmp_path: Path) -> None:
    wanted = walked(gallery, seeds(page))
    page.get_by_role("radiogroup", name="Format").get_by_text("APNG", exact=True).click()
    with gallery.frozen():  # so that it is still to be made when the page is loaded again
        page.get_by_role("button", name="Export").click()
        films = page.get_by_role("region", name="Films")
        expect(films).to_contain_text("A film of 4 key pictures, apng")
        page.reload()
        expect(films.get_by_role("button", name="Cancel")).to_be_visible()
    with page.expect_download() as told:
        films.get_by_role("button", name="Download the film").click()
    told.value.save_as(tmp_path / "film")
    found = read((tmp_path / "film").read_bytes())
    assert len(found) == len(wanted)
    assert max(abs(one - other).max() for one, other in zip(found, wanted, strict=True)) <= 1


def test_a_kept_film_is_walked_again(page: Page, gallery: Running) -> None:
    body = {"seeds": [3, 5, 8], "frames": 12, "fps": 6, "loop": True, "seed": 3, "psi": 0.7}
    assert gallery.client.post("/faces/interpolate", json=body).status_code == 200
    page.goto("#/library")
    page.get_by_role("list", name="Pictures").get_by_role("listitem").first.get_by_role("button").click()
    page.get_by_role("dialog", name="Picture", exact=True).get_by_role("button", name="Again").click()
    expect(key(page, 3)).to_have_accessible_name("Key picture 3, seed 8")
    assert seeds(page) == [3, 5, 8]
    expect(page.get_by_text("12 frames", exact=True)).to_be_visible()
    previews(page, 4, walked(gallery, [3, 5, 8], frames=12)[4])


def test_it_fits_a_phone(chromium: Browser, gallery: Running) -> None:
    with context(chromium, gallery.url, viewport={"width": 360, "height": 740}) as opened:
        page = opened.new_page()
        page.goto("#/walk/faces")
        expect(key(page, 4)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

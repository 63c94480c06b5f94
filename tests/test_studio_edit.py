"""The studio's page of directions, in a real browser against the real server: what it shows is what the routes make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, WebSocketRoute, expect

from tests.browser import context, decode, needs_chromium, shows
from tests.serving import Running

pytestmark = needs_chromium


@pytest.fixture
def page(chromium: Browser, studio: Running) -> Iterator[Page]:
    with context(chromium, studio.url) as opened:
        made = opened.new_page()
        made.goto("#/edit/faces?seed=7")
        yield made


def edited(studio: Running, model: str = "faces", **body: Any) -> Any:
    """The picture that the route makes, (H, W, 3)."""
    answer = studio.client.post(f"/{model}/edit", json={"seed": 7, "psi": 0.7, **body}, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return decode(answer.content)


def picture(page: Page) -> Locator:
    return page.get_by_role("img", name="The edited picture")


def slider(page: Page, name: str) -> Locator:
    return page.get_by_role("slider", name=name, exact=True)


def test_a_moved_slider_moves_the_picture_as_the_route_does(page: Page, studio: Running) -> None:
    plain = edited(studio)
    shows(picture(page), plain)
    slider(page, "Direction 1").fill("2.5")
    moved = edited(studio, directions={"sefa-1": 2.5})
    assert not np.array_equal(moved, plain)
    shows(picture(page), moved)
    slider(page, "Direction 3").press("ArrowLeft")
    shows(picture(page), edited(studio, directions={"sefa-1": 2.5, "sefa-3": -0.05}))


def test_undo_redo_and_reset(page: Page, studio: Running) -> None:
    first, second = edited(studio, directions={"sefa-1": 2.5}), edited(studio, directions={"sefa-1": 2.5, "sefa-2": -3})
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    slider(page, "Direction 1").fill("2.5")
    shows(picture(page), first)
    slider(page, "Direction 2").fill("-3")
    shows(picture(page), second)
    page.keyboard.press("Control+z")
    shows(picture(page), first)
    expect(slider(page, "Direction 2")).to_have_value("0")
    page.get_by_role("button", name="Redo").click()
    shows(picture(page), second)
    page.get_by_role("button", name="Reset").click()
    shows(picture(page), edited(studio))
    page.get_by_role("button", name="Undo").click()
    shows(picture(page), second)


def test_a_text_field_undoes_its_own_words(page: Page) -> None:
    slider(page, "Direction 1").fill("2.5")
    seed = page.get_by_role("textbox", name="Seed")
    seed.click()
    page.keyboard.type("5")
    expect(seed).to_have_value(re.compile("5"))
    page.keyboard.press("Control+z")
    expect(seed).to_have_value("7")
    expect(page.get_by_role("button", name="Redo")).to_be_disabled()
    page.keyboard.press("Control+y")
    expect(seed).to_have_value(re.compile("5"))
    expect(slider(page, "Direction 1")).to_have_value("2.5")


def test_a_held_key_shows_what_it_was_before(page: Page, studio: Running) -> None:
    moved = edited(studio, directions={"sefa-2": 4})
    slider(page, "Direction 2").fill("4")
    shows(picture(page), moved)
    page.keyboard.down("c")
    shows(page.get_by_role("img", name="Before"), edited(studio))
    page.keyboard.up("c")
    shows(picture(page), moved)
    button = page.get_by_role("button", name="Compare").bounding_box()
    assert button is not None
    page.mouse.move(button["x"] + 20, button["y"] + 10)
    page.mouse.down()
    shows(page.get_by_role("img", name="Before"), edited(studio))
    page.mouse.up()
    shows(picture(page), moved)


def test_a_kept_picture_is_edited_further_and_survives_a_reload(page: Page, studio: Running) -> None:
    slider(page, "Direction 1").fill("3")
    shows(picture(page), edited(studio, directions={"sefa-1": 3}))
    page.get_by_role("button", name="Keep", exact=True).click()
    page.get_by_role("region", name="Kept pictures").get_by_role("button", name="Picture, seed 7").click()
    expect(page.get_by_role("img", name="The picture that is edited")).to_be_visible()
    expect(slider(page, "Direction 1")).to_have_value("0")
    slider(page, "Direction 4").fill("-2")
    wanted = edited(studio, directions={"sefa-1": 3, "sefa-4": -2})
    shows(picture(page), wanted)
    page.reload()
    shows(picture(page), wanted)
    expect(slider(page, "Direction 4")).to_have_value("-2")


def test_what_is_downloaded_is_what_is_shown(page: Page, studio: Running, tmp_path: Path) -> None:
    slider(page, "Direction 5").fill("2")
    wanted = edited(studio, directions={"sefa-5": 2})
    shows(picture(page), wanted)
    with page.expect_download() as told:
        page.get_by_role("button", name="Download").click()
    told.value.save_as(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as saved:
        assert np.array_equal(np.asarray(saved.convert("RGB")), wanted)
        assert "sefa-5" in saved.info["parameters"]


def test_another_model_and_its_labels(page: Page, studio: Running) -> None:
    page.get_by_label("Model").select_option("Glyphs")
    expect(page).to_have_url(re.compile("#/edit/glyphs"))
    page.get_by_role("textbox", name="Seed").fill("7")
    page.get_by_role("textbox", name="Seed").press("Tab")
    page.get_by_label("Label").select_option("A")
    slider(page, "Direction 1").fill("1")
    shows(picture(page), edited(studio, "glyphs", label="A", directions={"sefa-1": 1}))


def test_a_dragged_slider_ends_at_the_latest_picture(page: Page, studio: Running) -> None:
    shows(picture(page), edited(studio))
    box = slider(page, "Direction 1").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, middle, steps=40)
    page.mouse.up()
    amount = float(slider(page, "Direction 1").input_value())
    assert amount > 3
    shows(picture(page), edited(studio, directions={"sefa-1": amount}))
    page.get_by_role("button", name="Undo").click()
    shows(picture(page), edited(studio))


def test_a_lost_connection_loses_nothing(page: Page, studio: Running) -> None:
    sockets: list[WebSocketRoute] = []

    def watch(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    page.route_web_socket(re.compile("/live"), watch)
    page.reload()
    slider(page, "Direction 1").fill("1")
    shows(picture(page), edited(studio, directions={"sefa-1": 1}))
    sockets[-1].close()
    slider(page, "Direction 2").fill("2")
    shows(picture(page), edited(studio, directions={"sefa-1": 1, "sefa-2": 2}))
    assert len(sockets) > 1


def test_it_fits_a_phone(chromium: Browser, studio: Running) -> None:
    with context(chromium, studio.url, viewport={"width": 360, "height": 740}) as opened:
        page = opened.new_page()
        page.goto("#/edit/faces?seed=7&to=sefa-1:2")
        shows(picture(page), edited(studio, directions={"sefa-1": 2}))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        slider(page, "Direction 9").scroll_into_view_if_needed()
        slider(page, "Direction 9").fill("3")
        shows(picture(page), edited(studio, directions={"sefa-1": 2, "sefa-9": 3}))
        box = picture(page).bounding_box()
        assert box is not None
        assert box["y"] >= 0  # it stays in sight beside the sliders

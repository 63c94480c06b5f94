"""The studio's pages of mixed and blended pictures, in a real browser against the real server."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import context, decode, needs_chromium, pixels, shows
from tests.serving import Running

pytestmark = needs_chromium


@pytest.fixture
def page(chromium: Browser, studio: Running) -> Iterator[Page]:
    with context(chromium, studio.url) as opened:
        made = opened.new_page()
        made.goto("#/mix/faces")
        expect(head(made, "Column", 3)).to_be_visible()
        yield made


def head(page: Page, side: str, number: int) -> Locator:
    return page.get_by_role("group", name="Board").get_by_role("button", name=f"{side} {number}, seed")


def seed_of(page: Page, side: str, number: int) -> int:
    return int((head(page, side, number).get_attribute("aria-label") or "").rpartition(" ")[2])


def style(studio: Running, seed: int) -> str:
    found: str = studio.client.post("/faces/generate", params={"seed": seed, "psi": 0.7}).json()["style"]
    return found


def read(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return decode(base64.b64decode(answer.json()["data"]))


def mixed(studio: Running, row: int, column: int, levels: Sequence[int]) -> Any:
    """What the route makes of two seeds, (H, W, 3); 1 stands for the column's level."""
    body = {"styles": [style(studio, row), style(studio, column)]}
    return read(studio.client.post("/faces/mix", params={"seed": row, "levels": list(levels)}, json=body))


def blended(studio: Running, seeds: Sequence[int], weights: Sequence[float]) -> Any:
    body = {"styles": [style(studio, seed) for seed in seeds]}
    return read(studio.client.post("/faces/blend", params={"seed": seeds[0], "weights": list(weights)}, json=body))


def cell(page: Page, row: int, column: int) -> Locator:
    return page.get_by_role("img", name=f"Row {row} with column {column}")


def choose(page: Page, seed: int) -> None:
    page.get_by_role("dialog").get_by_label("Seed").fill(str(seed))
    page.keyboard.press("Enter")


def test_a_cell_takes_its_columns_levels_and_the_others_of_its_row(page: Page, studio: Running) -> None:
    row, column = seed_of(page, "Row", 2), seed_of(page, "Column", 3)
    coarse = mixed(studio, row, column, [1, 1, 0, 0, 0])
    shows(cell(page, 2, 3), coarse)
    page.get_by_role("radiogroup", name="Of the column").get_by_text("Fine").click()
    fine = mixed(studio, row, column, [0, 0, 0, 1, 1])
    assert not np.array_equal(fine, coarse)
    shows(cell(page, 2, 3), fine)
    page.get_by_label("First level, as a number").fill("2")
    page.get_by_label("First level, as a number").press("Tab")
    shows(cell(page, 2, 3), mixed(studio, row, column, [0, 1, 1, 1, 1]))
    page.get_by_role("slider", name="Last level").press("ArrowLeft")
    shows(cell(page, 2, 3), mixed(studio, row, column, [0, 1, 1, 1, 0]))


def test_rows_and_columns_are_chosen_added_and_taken_away(page: Page, studio: Running) -> None:
    head(page, "Row", 1).click()
    choose(page, 41)
    expect(head(page, "Row", 1)).to_have_accessible_name("Row 1, seed 41")
    page.get_by_role("button", name="Add a column").click()
    choose(page, 42)
    shows(cell(page, 1, 4), mixed(studio, 41, 42, [1, 1, 0, 0, 0]))
    head(page, "Column", 4).click()
    page.get_by_role("button", name="Take it away").click()
    expect(cell(page, 1, 4)).to_have_count(0)


def test_pictures_are_dragged_between_the_places(page: Page, studio: Running) -> None:
    row, column = seed_of(page, "Row", 1), seed_of(page, "Column", 1)
    first = mixed(studio, row, column, [1, 1, 0, 0, 0])
    shows(cell(page, 1, 1), first)
    page.get_by_role("button", name="Row 1 with column 1", exact=True).drag_to(head(page, "Column", 2))
    expect(head(page, "Column", 2)).to_have_accessible_name(f"Column 2, seed {row}")
    assert np.array_equal(pixels(head(page, "Column", 2).get_by_role("img")), first)
    head(page, "Column", 3).drag_to(head(page, "Row", 3))
    other = seed_of(page, "Column", 3)
    expect(head(page, "Row", 3)).to_have_accessible_name(f"Row 3, seed {other}")
    shows(cell(page, 3, 1), mixed(studio, other, column, [1, 1, 0, 0, 0]))


def test_a_cell_is_opened_kept_and_edited(page: Page, studio: Running) -> None:
    wanted = mixed(studio, seed_of(page, "Row", 1), seed_of(page, "Column", 2), [1, 1, 0, 0, 0])
    page.get_by_role("button", name="Row 1 with column 2", exact=True).click()
    dialog = page.get_by_role("dialog", name="Picture")
    assert np.array_equal(pixels(dialog.get_by_role("img").first), wanted)
    dialog.get_by_role("link", name="Edit from here").click()
    shows(page.get_by_role("img", name="The edited picture"), wanted)


def test_a_blend_follows_its_weights(page: Page, studio: Running) -> None:
    seeds = [seed_of(page, "Row", number) for number in (1, 2, 3)]
    page.get_by_text("Blend", exact=True).click()
    blend = page.get_by_role("img", name="The blend")
    shows(blend, blended(studio, seeds, [1, 1, 1]), off=1)
    page.get_by_role("slider", name="Weight 2").fill("2.5")
    page.get_by_role("slider", name="Weight 3").fill("-0.5")
    wanted = blended(studio, seeds, [1, 2.5, -0.5])
    shows(blend, wanted, off=1)
    page.get_by_role("button", name="Keep", exact=True).click()
    kept = page.get_by_role("region", name="Kept pictures").get_by_role("img")
    assert np.array_equal(pixels(kept), wanted)


def test_it_fits_a_phone(chromium: Browser, studio: Running) -> None:
    with context(chromium, studio.url, viewport={"width": 360, "height": 740}) as opened:
        page = opened.new_page()
        page.goto("#/mix/faces")
        expect(head(page, "Column", 3)).to_be_visible()
        shows(cell(page, 3, 3), mixed(studio, seed_of(page, "Row", 3), seed_of(page, "Column", 3), [1, 1, 0, 0, 0]))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

"""The studio's page of everything made, in a real browser against the real server with its history on."""

from __future__ import annotations

import base64
import io
import re
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import context, decode, needs_chromium, pixels, shows
from tests.serving import Running

pytestmark = needs_chromium
MANY = 10_000
PNG = {"Accept": "image/png"}


@pytest.fixture
def server(gallery: Running) -> Running:
    """With four faces of the seeds 10 to 13, of which the last is the newest, and nothing else."""
    gallery.client.get("/images")  # from here on there is a database
    with closing(open_store(gallery)) as store, store:
        store.execute("PRAGMA foreign_keys = ON")
        for table in ("images", "sessions", "collections", "tags"):
            store.execute(f"DELETE FROM {table}")
    for seed in range(10, 14):
        assert gallery.client.post("/faces/generate", params={"seed": seed, "psi": 0.7}).status_code == 200
    return gallery


def open_store(server: Running) -> sqlite3.Connection:
    return sqlite3.connect(server.folder / "data" / "store.sqlite", timeout=60)


@pytest.fixture
def page(chromium: Browser, server: Running) -> Iterator[Page]:
    with context(chromium, server.url) as opened:
        made = opened.new_page()
        made.goto("#/library")
        expect(tiles(made)).to_have_count(4)
        yield made


def wanted(studio: Running, seed: int, model: str = "faces", **query: str | float) -> Any:
    """The picture that a seed makes, (H, W, 3); made by a server without a history, so that it is none of those that are kept."""
    return decode(studio.client.get(f"/{model}/image", params={"seed": seed, "psi": 0.7, **query}).content)


def tiles(page: Page) -> Locator:
    return page.get_by_role("list", name="Pictures").get_by_role("listitem")


def face(page: Page, seed: int) -> Locator:
    return tiles(page).get_by_role("button", name=f"Faces, seed {seed}", exact=True)


def seeds(page: Page) -> list[int]:
    names = tiles(page).get_by_role("button").evaluate_all("all => all.map(one => one.ariaLabel)")
    return [int(name.rpartition(" ")[2]) for name in names]


def opened(page: Page, seed: int) -> Locator:
    face(page, seed).click()
    return page.get_by_role("dialog", name="Picture", exact=True)


def test_everything_made_is_there_the_newest_first(page: Page, studio: Running) -> None:
    assert seeds(page) == [13, 12, 11, 10]
    assert np.array_equal(pixels(face(page, 12).get_by_role("img")), wanted(studio, 12))


def test_ten_thousand_pictures_scroll_and_few_of_them_exist(page: Page, server: Running, studio: Running) -> None:
    with closing(open_store(server)) as store, store:
        columns = [row[1] for row in store.execute("PRAGMA table_info(images)") if row[1] not in ("number", "id", "seed")]
        store.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY}) "
            f"INSERT INTO images (id, seed, {', '.join(columns)}) "
            f"SELECT lower(hex(randomblob(16))), 1000 + i, {', '.join(columns)} FROM n, images WHERE seed = 10 ORDER BY i"
        )
    page.reload()
    expect(face(page, 1000 + MANY)).to_be_visible()
    for _ in range(MANY):
        if face(page, 10).count():
            break
        page.mouse.wheel(0, 20_000)
        page.wait_for_timeout(20)
    else:
        raise AssertionError("the oldest picture is not reached")
    assert tiles(page).count() < 150
    assert np.array_equal(pixels(face(page, 10).get_by_role("img")), wanted(studio, 10))
    face(page, 10).focus()
    page.keyboard.press("Home")
    expect(face(page, 1000 + MANY)).to_be_focused()
    page.keyboard.press("End")
    expect(face(page, 10)).to_be_focused()


def test_filters_and_stars(page: Page, server: Running, studio: Running) -> None:
    server.client.post("/glyphs/generate", params={"seed": 5, "label": "A"})
    page.reload()
    expect(tiles(page)).to_have_count(5)
    page.get_by_label("Model").select_option("Glyphs")
    expect(tiles(page)).to_have_count(1)
    assert np.array_equal(pixels(tiles(page).get_by_role("img")), wanted(studio, 5, "glyphs", psi=1, label="A"))
    page.get_by_role("button", name="Clear").click()
    expect(tiles(page)).to_have_count(5)
    face(page, 11).focus()
    page.keyboard.press("s")
    expect(tiles(page).get_by_role("img", name="Starred")).to_have_count(1)
    page.get_by_role("button", name="Starred").click()
    expect(tiles(page)).to_have_count(1)
    assert np.array_equal(pixels(face(page, 11).get_by_role("img")), wanted(studio, 11))
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.get_by_text("Nothing is like that")).to_be_visible()


def test_all_of_the_words_are_chosen_in_the_search(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("faces")
    page.keyboard.press("Control+a")
    page.keyboard.type("x")
    expect(page.get_by_role("searchbox")).to_have_value("x")
    expect(page.get_by_role("toolbar", name="Chosen pictures")).to_have_count(0)


def test_collections_and_tags(page: Page, studio: Running) -> None:
    page.get_by_role("button", name="Select").click()
    face(page, 12).click()
    face(page, 10).click()
    page.get_by_role("button", name="Collect or tag").click()
    page.get_by_label("Collection", exact=True).last.fill("Best of all")
    page.get_by_role("button", name="Put in").click()
    expect(page.get_by_label("Collection", exact=True).get_by_text("Best of all (2)")).to_be_attached()
    page.get_by_label("Collection", exact=True).select_option("Best of all (2)")
    expect(tiles(page)).to_have_count(2)
    assert seeds(page) == [12, 10]
    page.keyboard.press("Escape")
    dialog = opened(page, 10)
    dialog.get_by_label("Add a tag").fill("Red hair")
    dialog.get_by_label("Add a tag").press("Enter")
    expect(dialog.get_by_role("button", name="Take the tag red hair off")).to_be_visible()
    dialog.get_by_role("button", name="Take it out of Best of all").click()
    expect(tiles(page)).to_have_count(1)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Tag", exact=True).select_option("red hair (1)")
    expect(tiles(page)).to_have_count(1)
    assert np.array_equal(pixels(face(page, 10).get_by_role("img")), wanted(studio, 10))


def test_details_tell_the_recipe_and_it_is_made_again(page: Page, studio: Running) -> None:
    dialog = opened(page, 11)
    recipe = dialog.get_by_role("region", name="Recipe")
    expect(recipe).to_contain_text("Seed11")
    expect(recipe).to_contain_text("Psi0.7")
    assert np.array_equal(pixels(dialog.get_by_role("img").first), wanted(studio, 11))
    page.keyboard.press("ArrowRight")
    expect(recipe).to_contain_text("Seed10")
    page.keyboard.press("ArrowLeft")
    expect(recipe).to_contain_text("Seed11")
    dialog.get_by_role("button", name="Again").click()
    expect(page).to_have_url(re.compile("#/generate/faces.*seed=11"))
    made = page.get_by_role("list", name="Pictures").get_by_role("img")
    expect(made).to_have_count(1)
    assert np.array_equal(pixels(made), wanted(studio, 11))


def test_edit_from_here(page: Page, server: Running) -> None:
    body = {"seed": 11, "psi": 0.7, "directions": {"sefa-1": 2.0}}
    answer = server.client.post("/faces/edit", json=body, headers=PNG)
    page.reload()
    expect(tiles(page)).to_have_count(5)
    tiles(page).first.get_by_role("button").click()
    page.get_by_role("dialog", name="Picture", exact=True).get_by_role("button", name="Edit from here").click()
    expect(page.get_by_role("slider", name="Direction 1", exact=True)).to_have_value("2")
    shows(page.get_by_role("img", name="The edited picture"), decode(answer.content))


def test_a_dropped_png_tells_its_settings(page: Page, server: Running, studio: Running) -> None:
    file = server.client.get("/faces/image", params={"seed": 77, "psi": 0.5}).content
    page.evaluate(
        """data => {
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.from(data)], 'x.png', {type: 'image/png'}));
        document.querySelector('.page').dispatchEvent(new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true}));
    }""",
        list(file),
    )
    dialog = page.get_by_role("dialog", name="Picture", exact=True)
    expect(dialog.get_by_role("region", name="Recipe")).to_contain_text("Seed77")
    dialog.get_by_role("button", name="Again").click()
    made = page.get_by_role("list", name="Pictures").get_by_role("img")
    expect(made).to_have_count(1)
    assert np.array_equal(pixels(made), wanted(studio, 77, psi=0.5))


def test_what_is_deleted_comes_back(page: Page, server: Running, studio: Running) -> None:
    face(page, 12).focus()
    page.keyboard.press("Delete")
    expect(tiles(page)).to_have_count(3)
    expect(page.get_by_text("Picture deleted")).to_be_visible()
    page.reload()
    expect(tiles(page)).to_have_count(3)
    page.keyboard.press("Control+a")
    page.get_by_role("button", name="Delete").click()
    expect(tiles(page)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(tiles(page)).to_have_count(3)
    assert seeds(page) == [13, 11, 10]
    page.reload()
    expect(tiles(page)).to_have_count(3)
    assert np.array_equal(pixels(face(page, 11).get_by_role("img")), wanted(studio, 11))


def test_a_selection_is_downloaded_as_a_zip(page: Page, tmp_path: Path, studio: Running) -> None:
    face(page, 13).focus()
    page.keyboard.press("x")
    face(page, 11).click(modifiers=["Shift"])
    expect(page.get_by_role("toolbar", name="Chosen pictures")).to_contain_text("3 chosen")
    with page.expect_download() as told:
        page.get_by_role("button", name="Download as zip").click()
    told.value.save_as(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        assert len(names) == 3
        found = [decode(archive.read(name)) for name in names]
    for seed in (11, 12, 13):
        assert any(np.array_equal(one, wanted(studio, seed)) for one in found)


def test_an_inpainted_picture_is_made_again(page: Page, server: Running) -> None:
    """Its mask lies on the server alone."""
    rng = np.random.default_rng(1)
    drawn = {
        "image": rng.integers(0, 256, (64, 64, 3), np.uint8),
        "mask_image": np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)[None].repeat(64, 0),
    }
    body = {"prompt": "a red face", "steps": 2, "seed": 5, "width": 64, "height": 64} | {name: text(array) for name, array in drawn.items()}
    assert server.client.post("/inpainting/", json=body).status_code == 200
    page.reload()
    expect(tiles(page)).to_have_count(5)
    tiles(page).first.get_by_role("button").click()
    with page.expect_response("**/regenerate") as told:
        page.get_by_role("dialog", name="Picture", exact=True).get_by_role("button", name="Again").click()
    assert told.value.status == 200
    expect(page.get_by_text("Made again, to the same bytes")).to_be_visible()


def text(array: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_without_a_history_it_tells_how_to_have_one(chromium: Browser, studio: Running) -> None:
    with context(chromium, studio.url) as opened:
        page = opened.new_page()
        page.goto("#/library")
        expect(page.get_by_text("This server keeps no pictures")).to_be_visible()
        expect(page.get_by_text("history = true")).to_be_visible()


def test_it_fits_a_phone(chromium: Browser, server: Running) -> None:
    with context(chromium, server.url, viewport={"width": 360, "height": 740}, has_touch=True) as opened:
        page = opened.new_page()
        page.goto("#/library")
        expect(tiles(page)).to_have_count(4)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("button", name="Select").tap()
        face(page, 12).tap()
        bar = page.get_by_role("toolbar", name="Chosen pictures").bounding_box()
        assert bar is not None
        assert bar["x"] >= 0
        assert bar["x"] + bar["width"] <= 360

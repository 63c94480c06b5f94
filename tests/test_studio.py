"""The studio in a real browser against the real server with the default GANs: models, pictures from seeds, what is kept."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.browser import context, decode, fetch, needs_chromium, pixels, until
from tests.serving import Running

pytestmark = needs_chromium


@pytest.fixture
def page(chromium: Browser, studio: Running) -> Iterator[Page]:
    with context(chromium, studio.url, permissions=["clipboard-read", "clipboard-write"]) as opened:
        yield opened.new_page()


def grid(page: Page) -> Locator:
    return page.get_by_role("list", name="Pictures").get_by_role("img")


def same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other)


def test_models_are_shown_and_lead_to_their_pages(page: Page) -> None:
    page.goto(page.request.get("/", headers={"Accept": "text/html"}).url)
    card = page.get_by_role("link", name="Faces", exact=False)
    assert same(pixels(card.get_by_role("img")), fetch(page, "/faces/image?seed=1&psi=0.7"))
    for text in ("64 × 64", "CPU", "GAN", "831 thousand weights", "ready"):
        expect(card).to_contain_text(text)
    card.click()
    expect(page).to_have_url(re.compile("#/generate/faces"))
    expect(grid(page)).to_have_count(12)


def test_the_grid_shows_what_a_link_says(page: Page) -> None:
    page.goto("#/generate/faces?seed=7&psi=0.5&count=4")
    expect(grid(page)).to_have_count(4)
    for place in range(4):
        assert same(pixels(grid(page).nth(place)), fetch(page, f"/faces/image?seed={7 + place}&psi=0.5"))


def test_the_grid_fills_as_pictures_come_and_escape_keeps_what_is_there(page: Page) -> None:
    held: list[Route] = []
    page.route(re.compile(r"/faces/generate.*seed=11\b"), lambda route: held.append(route))
    pictures = page.get_by_role("list", name="Pictures")
    page.goto("#/generate/faces?seed=7&count=8")
    expect(grid(page)).to_have_count(4)
    expect(pictures.get_by_role("listitem")).to_have_count(8)
    expect(pictures).to_have_attribute("aria-busy", "true")
    held.pop().continue_()
    expect(grid(page)).to_have_count(8)
    assert same(pixels(grid(page).last), fetch(page, "/faces/image?seed=14"))

    page.keyboard.press("Control+Enter")
    expect(grid(page)).to_have_count(4)
    page.keyboard.press("Escape")
    expect(pictures).to_have_attribute("aria-busy", "false")
    expect(pictures.get_by_role("listitem")).to_have_count(4)
    assert same(pixels(grid(page).last), fetch(page, "/faces/image?seed=10"))


def test_each_setting_reaches_the_picture(page: Page) -> None:
    page.goto("#/generate/glyphs?seed=7&psi=0.7&count=1")
    expect(grid(page)).to_have_count(1)
    changes = {"label": "label=Q", "psi": "psi=0.3", "noise": "noise=none"}
    page.get_by_label("Label").select_option("Q")
    page.get_by_role("slider", name="Psi").fill("0.3")
    page.get_by_role("radiogroup", name="Noise").get_by_text("None").click()
    page.keyboard.press("Control+Enter")
    expect(page).to_have_url(re.compile("label=Q"))
    expect(page.get_by_role("list", name="Pictures")).to_have_attribute("aria-busy", "false")
    made = pixels(grid(page).first)
    assert same(made, fetch(page, "/glyphs/image?seed=7&" + "&".join(changes.values())))
    for name in changes:
        others = "&".join(value for key, value in changes.items() if key != name)
        assert not same(made, fetch(page, f"/glyphs/image?seed=7&{others}")), name


def test_more_like_this_draws_around_a_picture(page: Page) -> None:
    page.goto("#/generate/faces?seed=7&psi=0.7&noise=none&count=4")
    expect(grid(page)).to_have_count(4)
    centre = pixels(grid(page).first)
    grid(page).first.click()
    page.get_by_role("button", name="More like this").click()
    page.get_by_role("slider", name="Spread").fill("0")
    page.keyboard.press("Control+Enter")
    pictures = page.get_by_role("list", name="Pictures")
    expect(pictures).to_have_attribute("aria-busy", "false")
    expect(grid(page)).to_have_count(4)
    assert all(same(pixels(grid(page).nth(place)), centre) for place in range(4))
    distances = []
    for spread in ("0.2", "1.5"):
        page.get_by_role("slider", name="Spread").fill(spread)
        page.get_by_role("button", name="Generate").click()
        expect(pictures).to_have_attribute("aria-busy", "false")
        expect(grid(page)).to_have_count(4)
        distances.append(np.mean([np.abs(pixels(grid(page).nth(place)) - centre).mean() for place in range(4)]))
    assert 0 < distances[0] < distances[1]


def test_a_free_seed_changes_and_a_locked_one_stays(page: Page) -> None:
    page.goto("#/generate/faces")
    expect(grid(page)).to_have_count(12)
    seed = page.get_by_role("textbox", name="Seed")
    first = seed.input_value()
    page.keyboard.press("Control+Enter")
    expect(seed).not_to_have_value(first)
    second = seed.input_value()
    page.get_by_role("button", name="Keep the seed").click()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("list", name="Pictures")).to_have_attribute("aria-busy", "false")
    expect(seed).to_have_value(second)
    assert same(pixels(grid(page).first), fetch(page, f"/faces/image?seed={second}&psi=0.7"))
    page.get_by_role("button", name="Draw another seed").click()
    expect(seed).not_to_have_value(second)


@pytest.mark.parametrize("wrong", ["abc", "", "-5"])
def test_what_is_no_seed_changes_nothing(page: Page, wrong: str) -> None:
    page.goto("#/generate/faces")
    expect(grid(page)).to_have_count(12)
    seed = page.get_by_role("textbox", name="Seed")
    before = seed.input_value()
    seed.fill(wrong)
    seed.press("Tab")
    expect(seed).to_have_value(before)
    expect(page.get_by_role("button", name="Keep the seed")).to_have_attribute("aria-pressed", "false")


def test_keys_are_those_of_the_page_that_is_shown(page: Page) -> None:
    page.goto("#/generate/faces?seed=7&count=1")
    expect(grid(page)).to_have_count(1)
    generate = listed_keys(page)
    assert {"Generate", "Cancel", "Keep or free the seed"} < generate

    go_to(page, "Edit")
    edit = listed_keys(page)
    assert {"Reset", "Keep"} < edit
    assert edit & generate == {"Show the keys"}
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/faces/generate" in request.url else None)
    page.keyboard.press("Control+Enter")
    go_to(page, "Generate")
    assert not asked

    assert listed_keys(page) == generate
    page.keyboard.press("Control+Enter")
    until(page, lambda: bool(asked))
    expect(page.get_by_role("list", name="Pictures")).to_have_attribute("aria-busy", "false")
    assert len(asked) == 1


def go_to(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def listed_keys(page: Page) -> set[str]:
    """What the keys do, as their dialog tells."""
    page.keyboard.press("?")
    told = page.get_by_role("dialog", name="Keys").get_by_role("definition")
    told.first.wait_for()
    found = set(told.all_inner_texts())
    page.keyboard.press("Escape")
    return found


def test_an_address_of_no_model_is_told(page: Page) -> None:
    page.goto("#/generate/nobody")
    expect(page.get_by_text("There is no model “nobody” here.")).to_be_visible()
    expect(grid(page)).to_have_count(12)


def test_link_and_command_make_the_same_picture(page: Page, tmp_path: Path) -> None:
    page.goto("#/generate/glyphs?seed=3&psi=0.6&noise=none&label=%26&count=4")
    page.goto("#/generate/glyphs?seed=3&psi=0.6&noise=none&label=b&count=4")
    expect(grid(page)).to_have_count(4)
    wanted = pixels(grid(page).nth(2))
    grid(page).nth(2).click()
    large = page.get_by_role("dialog", name="Picture")
    assert same(pixels(large.get_by_role("img")), wanted)

    large.get_by_role("button", name="Copy as curl").click()
    expect(page.get_by_text("Command copied")).to_be_visible()
    subprocess.run(["bash", "-c", page.evaluate("navigator.clipboard.readText()")], cwd=tmp_path, check=True, capture_output=True)
    (made,) = tmp_path.iterdir()
    assert same(decode(made.read_bytes()), wanted)

    large.get_by_role("button", name="Copy link").click()
    expect(page.get_by_text("Link copied")).to_be_visible()
    other = page.context.new_page()
    other.goto(page.evaluate("navigator.clipboard.readText()"))
    expect(grid(other)).to_have_count(1)
    assert same(pixels(grid(other).first), wanted)

    with page.expect_download() as download:
        large.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "glyphs-5.png"
    assert same(decode(download.value.path().read_bytes()), wanted)


def test_the_large_picture_is_left_and_turned_by_keys(page: Page) -> None:
    page.goto("#/generate/faces?seed=7&count=4")
    expect(grid(page)).to_have_count(4)
    grid(page).first.click()
    large = page.get_by_role("dialog", name="Picture").get_by_role("img")
    page.keyboard.press("ArrowRight")
    expect(large).to_have_attribute("alt", re.compile("seed 8"))
    assert same(pixels(large), fetch(page, "/faces/image?seed=8"))
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_kept_pictures_stay_and_travel_as_a_workspace(page: Page, studio: Running) -> None:
    page.goto("#/generate/faces?seed=7&count=4")
    expect(grid(page)).to_have_count(4)
    for place in (1, 3):
        grid(page).nth(place).hover()
        page.get_by_role("list", name="Pictures").get_by_role("button", name="Keep").nth(place - (place > 1)).click()
    kept = page.get_by_role("region", name="Kept pictures").get_by_role("img")
    expect(kept).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    workspace = json.loads(Path(download.value.path()).read_text())
    assert workspace["modelId"] == "faces"
    assert [entry["seed"] for entry in workspace["data"]["gen"]] == [8, 10]
    styles = [entry["style"] for entry in workspace["data"]["gen"]]
    again = studio.client.post("/faces/blend?seed=8", json={"styles": styles[:1]}, headers={"Accept": "image/png"})
    assert same(decode(again.content), fetch(page, "/faces/image?seed=8"))

    page.reload()
    expect(kept).to_have_count(2)
    assert same(pixels(kept.first), fetch(page, "/faces/image?seed=8"))

    kept.first.hover()
    page.get_by_role("button", name="Let go").first.click()
    expect(kept).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(kept).to_have_count(2)


def test_a_workspace_of_the_sample_client_is_opened(page: Page, studio: Running) -> None:
    page.goto("#/generate/faces?seed=7&count=1")
    made = studio.client.post("/glyphs/generate?seed=4&label=K").json()
    text = json.dumps({"modelId": "glyphs", "data": {"gen": [made]}}).encode()
    page.get_by_label("Workspace file").set_input_files({"name": "w.json", "mimeType": "application/json", "buffer": text})
    kept = page.get_by_role("region", name="Kept pictures").get_by_role("img")
    expect(page).to_have_url(re.compile("#/generate/glyphs"))
    assert same(pixels(kept), fetch(page, "/glyphs/image?seed=4&label=K"))
    page.get_by_label("Workspace file").set_input_files({"name": "x.json", "mimeType": "application/json", "buffer": b"[]"})
    expect(page.get_by_text("This file is no workspace.")).to_be_visible()
    expect(kept).to_have_count(1)

"""The studio for everybody: by keyboard, with a screen reader, on a phone, in the dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser import context, needs_chromium
from tests.serving import ROOT, Running

pytestmark = needs_chromium
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": PHONE | {"color_scheme": "dark"},
}
PAGES = {
    "models": ("#/", "Faces"),
    "generate": ("#/generate/glyphs?seed=7&count=4", "Label"),
    "prompt": ("#/prompt", "Prompt"),
    "edit": ("#/edit/faces?seed=7", "Psi"),
    "mix": ("#/mix/faces", "Mix"),
    "walk": ("#/walk/faces", "Walk"),
    "project": ("#/project", "Steps"),
    "library": ("#/library", "Library"),
}
"""Each page's address, and something that is there once it is complete."""


@pytest.fixture(params=LOOKS)
def page(request: pytest.FixtureRequest, chromium: Browser, gallery: Running) -> Iterator[Page]:
    with context(chromium, gallery.url, reduced_motion="reduce", **LOOKS[request.param]) as opened:
        yield opened.new_page()


def visit(page: Page, name: str) -> None:
    address, sign = PAGES[name]
    page.goto(address)
    page.get_by_role("main").get_by_text(sign, exact=True).first.wait_for()
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_fault_and_nothing_sticks_out(page: Page, name: str) -> None:
    visit(page, name)
    check(page)


def test_axe_finds_no_serious_fault_in_what_opens(page: Page) -> None:
    visit(page, "generate")
    page.get_by_role("list", name="Pictures").get_by_role("img").first.click()
    page.get_by_role("dialog", name="Picture").get_by_role("button", name="Keep").click()
    check(page)
    page.keyboard.press("Escape")
    page.get_by_role("region", name="Kept pictures").get_by_role("img").wait_for()
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    check(page)
    page.keyboard.press("Escape")
    visit(page, "prompt")
    page.get_by_label("A picture file").set_input_files(ROOT / "docs" / "images" / "studio" / "models-light.webp")
    page.get_by_role("toolbar", name="Painting").wait_for()
    page.get_by_text("Steps, guidance, scheduler").click()
    check(page)


def check(page: Page) -> None:
    faults = [fault for fault in Axe().run(page).response["violations"] if fault["impact"] in ("serious", "critical")]
    assert not faults, json.dumps([(fault["id"], node["html"][:200]) for fault in faults for node in fault["nodes"]], indent=1)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_the_keys_are_told_and_every_page_is_reached_without_a_mouse(chromium: Browser, gallery: Running) -> None:
    with context(chromium, gallery.url) as opened:
        page = opened.new_page()
        visit(page, "generate")
        page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keys")
        for text in ("Generate", "Cancel", "Show the keys"):
            expect(dialog).to_contain_text(text)
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        page.get_by_role("link", name="Models").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Models")).to_be_visible()


def test_pages_do_not_jump_while_they_fill(chromium: Browser, gallery: Running) -> None:
    """Cumulative layout shift, as browsers measure it; up to 0.1 counts as good."""
    watch = """
        window.shift = 0;
        new PerformanceObserver(list => { for (const one of list.getEntries()) if (!one.hadRecentInput) window.shift += one.value; })
            .observe({type: 'layout-shift', buffered: true});
    """
    with context(chromium, gallery.url) as opened:
        for name in PAGES:
            page = opened.new_page()
            page.add_init_script(watch)
            visit(page, name)
            assert page.evaluate("window.shift") < 0.1, name


def test_a_phone_has_all_pages_within_reach(chromium: Browser, gallery: Running) -> None:
    with context(chromium, gallery.url, **PHONE) as opened:
        page = opened.new_page()
        visit(page, "generate")
        expect(page.get_by_role("list", name="Pictures").get_by_role("img")).to_have_count(4)
        expect(page.get_by_role("button", name="Generate")).to_be_in_viewport()
        page.get_by_role("list", name="Pictures").get_by_role("img").first.tap()
        expect(page.get_by_role("dialog").get_by_role("button", name="Download")).to_be_in_viewport()
        page.get_by_role("dialog").get_by_role("button", name="Close").tap()
        page.get_by_role("link", name="Prompt").tap()
        expect(page.get_by_role("heading", name="Prompt")).to_be_in_viewport()

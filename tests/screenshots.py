"""Screenshots of the studio's pages for docs/, from the default configuration: python -m tests.screenshots [FOLDER] [PAGE …]"""

from __future__ import annotations

import io
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser import PATIENCE, browser, context
from tests.serving import ROOT, serve, write_config

FOLDER = ROOT / "docs" / "images" / "studio"
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}


def models(page: Page) -> None:
    page.goto("#/")
    expect(page.get_by_role("main").get_by_role("img")).to_have_count(3)


def generate(page: Page) -> None:
    page.goto("#/generate/faces?seed=21&psi=0.8&count=12")
    images = page.get_by_role("list", name="Pictures").get_by_role("img")
    expect(images).to_have_count(12)
    for place in (1, 6, 11):
        images.nth(place).click()
        page.get_by_role("dialog").get_by_role("button", name="Keep").click()
        page.keyboard.press("Escape")
    page.mouse.move(0, 0)


def prompt(page: Page) -> None:
    page.goto("#/prompt")
    for text, seed in (("an angry face with a black bun, pink background", 3), ("a smiling face with long red hair and round glasses", 8)):
        page.get_by_label("Prompt", exact=True).fill(text)
        page.get_by_role("textbox", name="Seed").fill(str(seed))
        page.get_by_role("radiogroup", name="Pictures").get_by_text("4", exact=True).click()
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("region", name=text).get_by_role("button").get_by_role("img")).to_have_count(4)
    page.mouse.wheel(0, -5000)


def edit(page: Page) -> None:
    page.goto("#/edit/faces?seed=25&psi=0.8")
    page.get_by_role("slider", name="Happy", exact=True).fill("0.8")
    page.get_by_role("slider", name="Long hair", exact=True).fill("0.8")
    expect(page.get_by_role("img", name="The edited picture")).to_be_visible()


def mix(page: Page) -> None:
    page.goto("#/mix/faces")
    expect(page.get_by_role("main").get_by_role("img").nth(12)).to_be_visible()


def walk(page: Page) -> None:
    page.goto("#/walk/faces")
    expect(page.get_by_role("main").get_by_role("img").nth(2)).to_be_visible()


def project(page: Page) -> None:
    page.goto("#/project")
    page.get_by_label("Model").select_option("faces")
    page.get_by_label("A picture file").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": photograph(page)})
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("button", name="Edit the result")).to_be_visible()


def photograph(page: Page) -> bytes:
    """A picture that another model made."""
    return page.request.get("/txt2img?prompt=a+happy+face+with+curly+brown+hair,+green+background&seed=3").body()


def library(page: Page) -> None:
    for path in ("faces/image?psi=0.8&seed=", "glyphs/image?psi=0.8&seed="):
        for seed in range(40, 52):
            page.request.get(f"/{path}{seed}")
    page.goto("#/library")
    expect(page.get_by_role("main").get_by_role("img").nth(15)).to_be_visible()


SCENES: dict[str, Callable[[Page], None]] = {
    "models": models,
    "generate": generate,
    "prompt": prompt,
    "edit": edit,
    "mix": mix,
    "walk": walk,
    "project": project,
    "library": library,
}
"""What each page shows: a function that brings it there."""


def main(argv: list[str]) -> None:
    folder = Path(argv[0]) if argv else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE)
    default = ROOT / "default"
    whole = tomllib.loads((default / "config.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        (Path(place) / "models").symlink_to(default / "models")
        with serve(write_config(Path(place), whole["models"], store={"history": True})) as server, browser() as chromium:
            for name in argv[1:] or SCENES:
                for look, options in LOOKS.items():
                    with context(chromium, server.url, reduced_motion="reduce", **options) as opened:
                        page = opened.new_page()
                        SCENES[name](page)
                        page.wait_for_load_state("networkidle")
                        picture = Image.open(io.BytesIO(page.screenshot()))
                        picture.convert("RGB").save(folder / f"{name}-{look}.webp", quality=88, method=6)


if __name__ == "__main__":
    main(sys.argv[1:])

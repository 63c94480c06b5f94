"""The default text-to-image model on a real server: its pictures obey, and a browser shows them by their URL."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving import ROOT, Running, serve, write_config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = {"file": str(ROOT / "default" / "models" / "tiny-diffusion"), "diffusion": {"steps": 20, "guidance": 3.0}}
    with serve(write_config(tmp_path_factory.mktemp("words"), {"words": model})) as running:
        yield running


def draw(server: Running, prompt: str, seed: int = 1) -> Any:
    """(64, 64, 3)"""
    answer = server.client.get("/txt2img", params={"prompt": prompt, "seed": seed})
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)


@pytest.mark.parametrize(("colour", "strongest"), [("red", 0), ("green", 1), ("blue", 2)])
def test_the_background_has_the_prompts_colour(server: Running, colour: str, strongest: int) -> None:
    for seed in range(3):
        picture = draw(server, f"a smiling face with black hair, {colour} background", seed)
        corners = np.concatenate([picture[:8, :8].reshape(-1, 3), picture[:8, -8:].reshape(-1, 3)]).mean(axis=0)
        assert corners.argmax() == strongest, corners


def test_hair_and_glasses_are_the_prompts(server: Running) -> None:
    for seed in range(3):
        blonde, black = (draw(server, f"a smiling face with short {hair} hair, blue background", seed) for hair in ("blonde", "black"))
        assert blonde[10:16, 26:38].mean() > black[10:16, 26:38].mean() + 50
        plain, glasses = (draw(server, f"a smiling face with blonde hair{more}, blue background", seed) for more in ("", " and glasses"))
        assert dark(glasses[28:44, 14:50]) > dark(plain[28:44, 14:50]) + 20


def dark(part: Any) -> int:
    return int((part.max(axis=2) < 90).sum())


def test_a_browser_shows_it_by_its_url(server: Running) -> None:
    """An ``<img>`` on a page of another origin, as the makers of such pages write it."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    from tests.browser import CHROMIUM, PATIENCE, browser

    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    prompt = "a surprised face with red hair & round glasses"
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 256, "height": 256})
        page.set_default_timeout(PATIENCE)
        query = "prompt=a+surprised+face+with+red+hair+%26+round+glasses&seed=4"
        page.set_content(f'<body style="margin: 0"><img src="{server.url}/txt2img?{query}"></body>')
        page.wait_for_function("document.images[0].complete && document.images[0].naturalWidth")
        shown = np.asarray(Image.open(io.BytesIO(page.locator("img").screenshot())).convert("RGB")).astype(int)
    assert shown.shape == (64, 64, 3)
    assert np.abs(shown - draw(server, prompt, 4)).max() <= 2

"""How soon the studio shows something: each page opened by a browser that knows nothing yet, on the default models."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

from tests.browser import browser, context
from tests.serving import ROOT, serve, write_config

PAGES = {
    "models": "#/",
    "generate": "#/generate/faces",
    "prompt": "#/prompt",
    "edit": "#/edit/faces",
    "mix": "#/mix/faces",
    "walk": "#/walk/faces",
    "project": "#/project",
    "library": "#/library",
}
WATCH = """
    window.told = {lcp: 0, shift: 0, picture: null};
    const watch = (type, take) => new PerformanceObserver(list => list.getEntries().forEach(take)).observe({type, buffered: true});
    watch('largest-contentful-paint', one => told.lcp = one.startTime);
    watch('layout-shift', one => told.shift += one.value);
    document.addEventListener('load', ({target}) => {
        if (target.tagName === 'IMG' && target.closest('main')) told.picture ??= performance.now();
    }, true);
"""
READ = """() => ({...told, script: performance.getEntriesByType('resource')
    .filter(one => one.name.endsWith('.js')).reduce((sum, one) => sum + one.encodedBodySize, 0)})"""


def look(chromium: Browser, url: str, address: str) -> dict[str, Any]:
    with context(chromium, url) as opened:
        page = opened.new_page()
        page.add_init_script(WATCH)
        page.goto(address)
        page.wait_for_load_state("networkidle")
        told: dict[str, Any] = page.evaluate(READ)
        return told


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench studio", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each page is opened; medians are told")
    rounds = parser.parse_args(argv).rounds
    models = tomllib.loads((ROOT / "default" / "config.toml").read_text(encoding="utf-8"))["models"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        (Path(place) / "models").symlink_to(ROOT / "default" / "models")
        with serve(write_config(Path(place), models)) as server, browser() as chromium:
            print("| page | first picture | largest paint | layout shift | script, compressed |\n|---|---|---|---|---|")
            for name, address in PAGES.items():
                seen = [look(chromium, server.url, address) for _ in range(rounds)]
                middle = {key: statistics.median(one[key] or 0 for one in seen) for key in seen[0]}
                first = f"{middle['picture']:.0f} ms" if middle["picture"] else "–"
                print(f"| {name} | {first} | {middle['lcp']:.0f} ms | {middle['shift']:.3f} | {middle['script'] / 1000:.0f} kB |")
    return 0

"""How the studio is served, and what it says when the server wants a name, is busy, or is away."""

from __future__ import annotations

import contextlib
import functools
import gzip
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect

from tests.browser import ENGINE, GANS, LINGERING, context, fetch, needs_chromium, pixels
from tests.serving import ROOT, Running, serve, write_config

FACES = {"faces": GANS["faces"]}


def test_pages_allow_no_inline_script_and_what_has_a_hash_stays(studio: Running) -> None:
    page = studio.client.get("/ui/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page.text)
    names = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', page.text)
    assert len(names) >= 2
    for name in names:
        asset = studio.client.get(f"/ui/{name}")
        assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert asset.headers["content-encoding"] == "gzip"
        assert asset.headers["content-type"].split(";")[0] in ("text/javascript", "text/css")
        assert studio.client.get(f"/ui/{name}", headers={"Accept-Encoding": "identity"}).text == asset.text
        known = studio.client.get(f"/ui/{name}", headers={"If-None-Match": asset.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["assets", "../pyproject.toml", "..%2f..%2fpyproject.toml", "%2fetc%2fpasswd", "src/main.ts", "assets/none.js"]
)
def test_nothing_else_is_served(studio: Running, path: str) -> None:
    assert studio.client.get(f"/ui/{path}").status_code == 404


def test_browsers_are_sent_to_the_studio_and_others_are_greeted(studio: Running) -> None:
    assert studio.client.get("/", headers={"Accept": "text/html"}).headers["location"] == "ui/"
    assert studio.client.get("/ui").headers["location"] == "ui/"
    assert studio.client.get("/").json() == "Hello"
    assert studio.client.head("/ui/").status_code == 200


@needs_chromium
def test_the_descriptions_need_nobody_else(studio: Running, chromium: Browser) -> None:
    asked: list[str] = []
    with contextlib.closing(chromium.new_context(base_url=studio.url)) as opened:
        page = opened.new_page()
        page.on("requestfinished", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: asked.append(request.url) if request.failure != "csp" else None)
        page.goto("/docs")
        expect(page.get_by_text("/{model_id}/generate", exact=True)).to_be_visible()
        page.goto("/redoc")
        expect(page.get_by_role("menuitem").first).to_be_visible()
    assert [url for url in asked if not url.startswith((studio.url, "data:", "blob:"))] == []
    assert any(url.endswith("/docs/scripts/redoc.standalone.js") for url in asked)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """The origin of an empty page that another server serves."""
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<!doctype html><title>elsewhere</title>")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "page"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{pages.server_port}"
        pages.shutdown()


@needs_chromium
def test_a_page_from_elsewhere_may_call_the_server(chromium: Browser, elsewhere: str, tmp_path: Path) -> None:
    """What the sample client of the original API does."""
    http = {"http": {"cors": {"enabled": True, "origins": [elsewhere]}}}
    with serve(write_config(tmp_path, FACES, server=ENGINE | http)) as running, context(chromium, running.url) as opened:
        page = opened.new_page()
        page.goto(elsewhere)
        call = "async ([url, options]) => (await fetch(url, options)).json()"
        (model,) = page.evaluate(call, [f"{running.url}/models/", {}])
        assert model["id"] == "faces"
        made = page.evaluate(call, [f"{running.url}/faces/generate", {"method": "POST"}])
        assert (made["model"], made["mimeType"], made["width"]) == ("faces", "image/png", 64)


@pytest.fixture
def signs(chromium: Browser, tmp_path: Path) -> Iterator[Page]:
    auth = {"enabled": True, "enable_signup": True, "enable_public_token": True}
    with serve(write_config(tmp_path, FACES, server=ENGINE, auth=auth)) as running, context(chromium, running.url) as opened:
        yield opened.new_page()


@needs_chromium
def test_signing_in_goes_on_where_it_was_asked_for(signs: Page) -> None:
    images = signs.get_by_role("list", name="Pictures").get_by_role("img")
    signs.goto("#/generate/faces?seed=7&psi=0.5&count=4")
    dialog = signs.get_by_role("dialog", name="Sign in")
    dialog.get_by_label("Name").fill("ada")
    dialog.get_by_label("Password").fill("not hers, and long enough")
    dialog.get_by_role("button", name="Sign in").click()
    expect(dialog.get_by_role("alert")).to_contain_text("wrong")
    dialog.get_by_role("button", name="Make an account").click()
    signs.get_by_role("dialog", name="Make an account").get_by_role("button", name="Make an account").click()
    expect(images).to_have_count(4)
    expect(signs.get_by_role("dialog")).to_have_count(0)

    signs.reload()
    expect(images).to_have_count(4)
    signs.get_by_role("button", name="Sign out ada").click()
    signs.get_by_role("button", name="Generate").click()
    signs.get_by_role("button", name="Go on as a guest").click()
    expect(signs.get_by_role("list", name="Pictures")).to_have_attribute("aria-busy", "false")
    expect(images).to_have_count(4)


@needs_chromium
def test_a_used_up_quota_is_told_with_the_time_and_goes_on_by_itself(chromium: Browser, tmp_path: Path) -> None:
    rate = {"limit": {"rate": {"enabled": True, "window": 8.0, "max_request": 1}}}
    with serve(write_config(tmp_path, FACES, server=ENGINE | rate)) as running, context(chromium, running.url) as opened:
        page = opened.new_page()
        page.goto("#/generate/faces?seed=7&psi=0.5&count=8")
        banner = page.get_by_role("alert")
        expect(banner).to_contain_text("Your share of this server is used up for now.")
        expect(banner).to_contain_text(re.compile(r"Trying again in \d+ s"))
        images = page.get_by_role("list", name="Pictures").get_by_role("img")
        expect(images).to_have_count(8)
        expect(banner).to_have_count(0)


@needs_chromium
def test_a_server_that_went_away_is_waited_for(chromium: Browser, tmp_path: Path) -> None:
    config = write_config(tmp_path, FACES, server=LINGERING)
    with serve(config) as running, context(chromium, running.url) as opened:
        page = opened.new_page()
        page.goto("#/generate/faces?seed=7&psi=0.5&count=4")
        shown = page.get_by_role("list", name="Pictures").get_by_role("img")
        expect(shown).to_have_count(4)
        running.stop()
        page.get_by_role("textbox", name="Seed").fill("1234")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
        expect(page.get_by_role("textbox", name="Seed")).to_have_value("1234")
        with serve(config, port=running.port):
            expect(shown).to_have_count(4)
            expect(page.get_by_role("alert")).to_have_count(0)
            assert np.array_equal(pixels(shown.first), fetch(page, "/faces/image?seed=1234&psi=0.5"))


@needs_chromium
def test_waiting_is_given_up_by_escape(chromium: Browser, tmp_path: Path) -> None:
    rate = {"limit": {"rate": {"enabled": True, "window": 3600.0, "max_request": 1}}}
    with serve(write_config(tmp_path, FACES, server=ENGINE | rate)) as running, context(chromium, running.url) as opened:
        page = opened.new_page()
        page.goto("#/generate/faces?seed=7&psi=0.5&count=8")
        images = page.get_by_role("list", name="Pictures").get_by_role("img")
        expect(images).to_have_count(4)
        expect(page.get_by_role("alert")).to_contain_text("min")
        page.keyboard.press("Escape")
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(images).to_have_count(4)


def test_what_a_browser_must_fetch_stays_small() -> None:
    packed = {path: len(gzip.compress(path.read_bytes(), 9)) for path in (ROOT / "api" / "ui" / "dist").rglob("*") if path.is_file()}
    assert sum(packed.values()) <= 600_000
    assert sum(size for path, size in packed.items() if path.suffix == ".js") <= 250_000

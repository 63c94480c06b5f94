"""Before torch is loaded: its threads wait without spinning, as tests share cores with servers; sums do not depend on addresses."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO")
for name in ("CI", "BUILD_NUMBER"):  # there, pytest compares pictures that differ byte by byte in text: minutes, and of no help
    os.environ.pop(name, None)


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """One browser for a module's tests; it keeps an event loop, so the next module's cannot go on with it."""
    from tests.browser import browser

    with browser() as chromium:
        yield chromium

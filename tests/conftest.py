"""Before torch is loaded: its threads wait without spinning, as tests share cores with servers; sums do not depend on addresses."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.serving import Running

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


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Running]":
    """A server with the default GANs that keeps no pictures."""
    from tests.browser import ENGINE, GANS
    from tests.serving import serve, write_config

    with serve(write_config(tmp_path_factory.mktemp("studio"), GANS, ENGINE)) as running:
        yield running


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Running]":
    """A server with the default GANs and a tiny diffusion model, with a history: tests must expect what others have left there."""
    from tests.browser import ENGINE, GANS
    from tests.serving import serve, write_config
    from tests.tiny_pipelines import save

    folder = tmp_path_factory.mktemp("gallery")
    models = GANS | {"words": {"file": str(save("sd", folder)), "name": "Words", "warmup": False}}
    with serve(write_config(folder, models, ENGINE, store={"history": True})) as running:
        yield running


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Files go to the processes of a test run whole, as their tests share servers. Those that start Ray clusters go to one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if Path(file).name.startswith(("test_ray", "test_cluster", "test_walk")) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)

"""Which requests an engine has begun is known when it has died, however it died."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from api.conf import Config
from api.engine.begun import COUNT, Begun, open_begun, read_begun
from api.engine.client import Engine
from tests.serving import ROOT
from tests.test_engine import configure, generate, pids, with_engines


def test_each_client_finds_its_own(tmp_path: Path) -> None:
    begun = Begun(tmp_path / "ring")
    for client, request in ((1, 0), (1, 7), (2, 7), (2, 8)):
        begun.note(client, request)
    assert [read_begun(begun.path, client) for client in (1, 2, 3)] == [{0, 7}, {7, 8}, set()]


def test_the_latest_stay(tmp_path: Path) -> None:
    begun = Begun(tmp_path / "ring")
    for request in range(COUNT + 10):
        begun.note(1, request)
    assert read_begun(begun.path, 1) == set(range(10, COUNT + 10))


def test_without_room_there_is_none_and_nothing_is_left(tmp_path: Path) -> None:
    program = f"""
import resource, signal
from pathlib import Path
from api.engine.begun import open_begun
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a disk with that much room
assert open_begun(Path({str(tmp_path / "engine.sock")!r})) is None
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert not list(tmp_path.iterdir())


def test_without_a_place_there_is_none(tmp_path: Path) -> None:
    assert open_begun(tmp_path / "missing" / "engine.sock") is None
    assert read_begun(tmp_path / "missing", 1) == set()


def test_it_outlives_who_wrote_it_and_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from api.engine.begun import open_begun
begun = open_begun(Path({str(tmp_path / "engine.sock")!r}))
begun.note(3, 4)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert read_begun(left, 3) == {4}
    own = open_begun(tmp_path / "engine.sock")
    assert own is not None
    assert list(tmp_path.iterdir()) == [own.path]
    assert left != own.path
    own.remove()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configure(tmp_path, 0.2)


def test_only_what_was_begun_counts_a_death(config: Config) -> None:
    async def use(engine: Engine) -> None:
        wanted = [(await generate(engine, seed)).data for seed in range(64)]
        (pid,) = pids(config)
        for _ in range(100):
            answers = [asyncio.ensure_future(generate(engine, seed)) for seed in range(64)]
            await asyncio.sleep(0.005)
            os.kill(pid, signal.SIGSTOP)
            (diary,) = engine.diaries.values()
            await asyncio.sleep(0.02)  # what is on its way arrives
            held = dict(engine.pending)
            begun = set(held) & read_begun(Path(diary.path), diary.client)
            if 0 < len(begun) < len(held):
                break
            os.kill(pid, signal.SIGCONT)
            await asyncio.gather(*answers)
        assert not any(entry.started for entry in held.values())  # nobody was told by a message
        os.kill(pid, signal.SIGKILL)
        while pid in pids(config) or any(entry.link is not None for entry in held.values()):
            await asyncio.sleep(0.001)
        assert {number for number, entry in held.items() if entry.deaths} == begun
        assert {number for number, entry in held.items() if entry.submit.alone} == begun
        assert [picture.data for picture in await asyncio.gather(*answers)] == wanted

    with_engines(config, 1, use)
    assert not list(config.server.tmp_dir.glob("*.begun"))

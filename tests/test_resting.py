"""The event loop of a worker that refuses many sleeps now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from api import resting
from api.conf import load_config
from api.resting import Rest, queued
from tests.checkpoints import tiny_precure
from tests.serving import write_config


class Bed:
    """A ``Rest`` whose rests take no time, and the turns of the event loop after which they came."""

    def __init__(self) -> None:
        self.turn, self.rests = 0, list[int]()
        self.rest = Rest(self.note)

    def note(self) -> float:
        self.rests.append(self.turn)
        return 0.0

    async def go_on(self, turns: int) -> None:
        for _ in range(turns):
            self.turn += 1
            await asyncio.sleep(0)


def test_who_is_refused_by_himself_is_not_worth_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "LONGEST", 0.001)

    async def run() -> None:
        bed = Bed()
        for _ in range(3):
            bed.rest.refused()
            await bed.go_on(20)
            await asyncio.sleep(0.002)
        assert not bed.rests

    asyncio.run(run())


def test_a_rest_comes_when_what_is_there_has_been_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "LONGEST", 10.0)

    async def run() -> None:
        bed = Bed()
        bed.rest.refused()
        await bed.go_on(20)
        assert not bed.rests
        bed.rest.refused()
        await bed.go_on(20)
        assert bed.rests == [20 + resting.TURNS]
        bed.rest.refused()  # it has rested just now: so many come that the next rest is worth it
        await bed.go_on(resting.TURNS - 1)
        bed.rest.refused()  # one more has come in what would have been the last turn
        await bed.go_on(20)
        assert bed.rests[1:] == [40 + resting.TURNS - 1 + resting.AGAIN]

    asyncio.run(run())


def test_a_rest_is_no_longer_than_the_queue_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(lasting: float) -> float:
        rest = Rest(lambda: lasting)
        rest.refused()
        rest.refused()
        longest = 0.0
        for _ in range(20):
            begun = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - begun)
        return longest

    monkeypatch.setattr(resting, "LONGEST", 0.3)
    assert 0.3 <= asyncio.run(run(1000.0)) < 60
    monkeypatch.setattr(resting, "LONGEST", 1000.0)
    assert 0.1 <= asyncio.run(run(0.1)) < 60


@pytest.mark.parametrize(
    ("most", "server", "more", "part"),
    [
        (32, {}, {}, 0.5),
        (64, {}, {}, 0.75),
        (16, {}, {}, 0.0),  # all of them are being computed: nothing waits in the engine
        (4, {}, {}, 0.0),
        (32, {"engine": {"max_batch": 8}}, {}, 0.75),
        (32, {}, {"cluster": {"engine": "ray"}}, 0.0),
        (None, {}, {}, 0.0),
    ],
)
def test_it_depends_on_what_waits_in_the_engine(
    tmp_path: Path, most: int | None, server: Mapping[str, Any], more: Mapping[str, Any], part: float
) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    limit = {"concurrency": {"enabled": True, "max_concurrency": most}} if most else {}
    config = write_config(tmp_path, {"plain": {"file": "plain.safetensors", "relative": True}}, {"limit": limit, **server}, **more)
    assert queued(load_config(config)) == part


def test_a_model_counts_with_its_own_batches(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    plain = {"file": "plain.safetensors", "relative": True}
    limit = {"concurrency": {"enabled": True, "max_concurrency": 32}}
    models = {"plain": plain, "wide": {**plain, "max_batch": 24}}
    assert queued(load_config(write_config(tmp_path, models, {"limit": limit}))) == 0.25
    models["far"] = {**plain, "gpu": True}
    assert queued(load_config(write_config(tmp_path, models, {"limit": limit}))) == 0.0
    del models["wide"], models["plain"]
    assert queued(load_config(write_config(tmp_path, models, {"limit": limit}))) == 0.0

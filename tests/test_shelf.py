"""Models that do not all fit: real ones, swapped in a real engine process, without a lost or a different picture."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.conf import load_config
from api.engine.shelf import Shelf
from api.models.registry import load_model
from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config

NAMES = ("one", "two", "three")


def config_of(folder: Path, memory: float, **engine: object) -> Path:
    for seed, name in enumerate(NAMES):
        tiny_precure(folder / f"{name}.safetensors", levels=4, seed=seed)
    models = {name: {"file": f"{name}.safetensors", "relative": True, "warmup": False} for name in NAMES}
    return write_config(folder, models, {"engine": {"memory": memory, **engine}})


@pytest.fixture(scope="module")
def weight(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of one of the models."""
    config = load_config(config_of(tmp_path_factory.mktemp("weight"), 0.0))
    return 4 * load_model(config, "one").info.parameters


def test_the_least_recently_used_makes_room(tmp_path: Path, weight: int, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(config_of(tmp_path, 0.0))
    tidied: list[None] = []
    shelf = Shelf(lambda name: load_model(config, name), budget=2 * weight + 1, tidy=lambda: tidied.append(None))
    with caplog.at_level(logging.INFO):
        for name in ("one", "two", "one", "three"):
            assert shelf.bring(name).info.id == name
    assert list(shelf.loaded) == ["one", "three"]
    assert set(shelf.infos) == set(NAMES)
    assert len(tidied) == 1
    assert "two makes room" in caplog.text
    same = shelf.loaded["one"]
    assert shelf.bring("one") is same
    assert shelf.bring("two") is not None
    assert list(shelf.loaded) == ["one", "two"]


def test_a_model_larger_than_the_budget_stays_alone(tmp_path: Path) -> None:
    config = load_config(config_of(tmp_path, 0.0))
    shelf = Shelf(lambda name: load_model(config, name), budget=1)
    for name in NAMES:
        shelf.bring(name)
        assert list(shelf.loaded) == [name]


@pytest.fixture
def server(tmp_path: Path, weight: int) -> Iterator[Running]:
    with serve(config_of(tmp_path, 1.5 * weight / (1 << 30))) as running:
        yield running


def test_all_are_served_the_same_pictures_whatever_is_in_memory(server: Running) -> None:
    """100 swaps by six clients; the engine's memory is what it was."""
    expected = {name: server.client.get(f"/{name}/image?seed=5").content for name in NAMES}
    assert len(set(expected.values())) == 3
    wrong: list[str] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for turn in range(12):
                name = NAMES[(number + turn) % 3]
                answer = client.get(f"/{name}/image?seed=5")
                if answer.content != expected[name]:
                    wrong.append(f"{name}: {answer.status_code}")

    for _ in range(3):  # what a process takes at first it keeps
        swap(server)
    before = resident(server)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for _ in range(35):
        swap(server)
    assert swaps(server) >= 100
    assert resident(server) <= 1.02 * before + (2 << 20)


def swap(server: Running) -> None:
    for name in NAMES:
        assert server.client.post(f"/{name}/generate").status_code == 200


def swaps(server: Running) -> int:
    return server.log.read_text().count("makes room")


def resident(server: Running) -> int:
    (engine,) = server.engines()
    return 4096 * int(Path(f"/proc/{engine}/statm").read_text().split()[1])


def test_who_does_not_want_to_wait_is_told_when_to_come_back(tmp_path: Path, weight: int) -> None:
    with serve(config_of(tmp_path, 1.5 * weight / (1 << 30), wait=False)) as server:
        answer = server.client.post("/one/generate")  # "three" was loaded last
        assert answer.status_code == 503
        assert answer.json() == {"detail": "the model is loading"}
        end = time.monotonic() + 60
        while answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert time.monotonic() < end
            time.sleep(0.2)
            answer = server.client.post("/one/generate")
        assert answer.status_code == 200


def test_bad_input_for_a_parked_model_is_refused_and_a_lost_checkpoint_told(tmp_path: Path, weight: int) -> None:
    with serve(config_of(tmp_path, 1.5 * weight / (1 << 30))) as server:
        style = server.client.post("/one/generate").json()["style"]
        server.client.post("/two/generate")
        assert server.client.post("/one/mix", json={"styles": [style] * 9}).status_code == 422
        assert server.client.post("/one/mix", json={"styles": [style] * 2}).status_code == 200
        server.client.post("/two/generate")
        (tmp_path / "one.safetensors").unlink()
        answer = server.client.post("/one/generate")
        assert (answer.status_code, answer.json()) == (503, {"detail": "the model cannot be loaded"})
        assert server.client.post("/two/generate").status_code == 200

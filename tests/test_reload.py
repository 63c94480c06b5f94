"""A changed TOML under load: models come, go and are replaced without a lost request; a broken one changes nothing and says why."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from api import presence
from api.conf import load_config
from tests.checkpoints import tiny_precure
from tests.serving import ROOT, Running, serve, write_config
from tests.test_gunicorn import Crowd, children, until

KINDS = {"uvicorn": 0, "gunicorn": 2}
THIRD = '\n[models.third]\nfile = "other.safetensors"\nrelative = true\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for number, name in enumerate(("plain", "other")):
        tiny_precure(tmp_path / f"{name}.safetensors", levels=3, seed=number)
    models = {name: {"file": f"{name}.safetensors", "relative": True} for name in ("plain", "other")}
    return write_config(tmp_path, models, {"engine": {"linger": 1.0}})


@contextmanager
def busy(config: Path, workers: int) -> Iterator[Running]:
    """The server under load; none of its requests may fail."""
    with serve(config, workers=workers) as server, Crowd(server, 3) as crowd:
        until(lambda: next(crowd.made) > 10)
        yield server
        made = next(crowd.made)
        until(lambda: next(crowd.made) > made + 20)
        crowd.__exit__()
        assert not crowd.failures, crowd.failures[:3]


def reload(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api", "reload", str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def models(server: Running) -> list[str]:
    return [model["id"] for model in httpx.get(f"{server.url}/models/", timeout=60).json()]


def picture(server: Running, model: str) -> bytes:
    """The pixels; beside them stands the model's name."""
    data = httpx.get(f"{server.url}/{model}/image", params={"seed": 5}, timeout=60).content
    return Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_models_come_go_and_are_replaced(config: Path, kind: str) -> None:
    with busy(config, KINDS[kind]) as server:
        text = config.read_text()
        assert models(server) == ["plain", "other"]
        (first,) = server.engines()
        config.write_text(text + THIRD)
        done = reload(config)
        assert (done.returncode, done.stdout) == (0, "applied\n"), done.stderr
        assert models(server) == ["plain", "other", "third"]
        assert picture(server, "third") == picture(server, "other") != picture(server, "plain")
        config.write_text(text.partition("[models.other]")[0] + THIRD)
        assert reload(config).returncode == 0
        assert models(server) == ["plain", "third"]
        assert httpx.post(f"{server.url}/other/generate", timeout=60).status_code == 404
        before = picture(server, "third")
        (config.parent / "other.safetensors").unlink()
        tiny_precure(config.parent / "other.safetensors", levels=3, seed=9)
        assert reload(config).returncode == 0
        assert picture(server, "third") != before
        until(lambda: len(server.engines()) == 1)
        assert server.engines() != [first]


def counted(server: Running, outcome: str) -> float:
    """Reloads, as the metrics have them."""
    name = f'stylegan_reloads_total{{outcome="{outcome}"}} '
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_broken_changes_nothing_and_says_why(config: Path, kind: str) -> None:
    """A TOML with a mistake, one without TOML, and a checkpoint that shows its fault only when it is loaded."""
    text = config.read_text()
    whole = (config.parent / "plain.safetensors").read_bytes()
    (config.parent / "cut.safetensors").write_bytes(whole)
    with busy(config, KINDS[kind]) as server:
        processes = children(server.process.pid)
        for broken, why in (
            (text.replace("[server]", "[servant]"), "servant: unknown key"),
            ("not TOML", "not valid TOML"),
            (text + THIRD.replace("other", "missing"), "missing.safetensors"),
        ):
            config.write_text(broken)
            known = server.log.read_text().count(why)
            os.kill(server.process.pid, signal.SIGHUP)
            until(lambda known=known, why=why: server.log.read_text().count(why) > known)
            done = reload(config)
            assert done.returncode == 2
            assert why in done.stderr
        until(lambda: counted(server, "refused") == 3)
        assert models(server) == ["plain", "other"]
        if KINDS[kind]:
            until(lambda: children(server.process.pid) == processes)
        config.write_text(text + THIRD)
        assert reload(config).returncode == 0
        assert models(server) == ["plain", "other", "third"]
        until(lambda: counted(server, "applied") == 1)
        assert counted(server, "refused") == 3


def test_engines_are_held_until_the_new_workers_are_there(config: Path) -> None:
    """They take seconds to be imported, and the old ones may have left before."""
    config.write_text(config.read_text().replace("linger = 1.0", "linger = 0.05"))
    with serve(config, workers=2) as server:
        before, (engine,) = children(server.process.pid), server.engines()
        assert reload(config).returncode == 0
        until(lambda: not before - {engine} & children(server.process.pid))
        assert models(server) == ["plain", "other"]
        assert server.engines() == [engine]


def test_who_asked_is_told_of_any_failure(config: Path) -> None:
    """The child of gunicorn that prepares a reload cannot tell of it, as its pipe is none."""
    with serve(config, workers=1):
        folder = load_config(config).server.tmp_dir
        command = [sys.executable, "-m", "guni.reloading", "999", str(folder)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "STYLEGAN_TOML": str(config)}, capture_output=True, timeout=120)
        assert done.returncode == 2
        found = presence.find(folder)
        assert found is not None
        assert found.turn == 1
        assert "Bad file descriptor" in str(found.refused)


def test_who_is_to_leave_does_not_wait_for_a_successor(config: Path) -> None:
    with serve(config) as server:
        before = set(server.engines())
        config.write_text(config.read_text() + THIRD)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: len(server.engines()) > len(before))
        (new,) = set(server.engines()) - before
        os.kill(new, signal.SIGSTOP)  # models that take minutes to load
        try:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.kill(new, signal.SIGCONT)


def test_websockets_and_event_streams_are_sent_to_the_successor(config: Path) -> None:
    with serve(config) as server:
        url = server.url.replace("http", "ws")
        with connect(f"{url}/plain/live") as live, connect(f"{url}/events") as events:
            assert reload(config).returncode == 0
            for socket in (live, events):
                with pytest.raises(ConnectionClosed):
                    socket.recv(timeout=60)
        assert "Traceback" not in server.log.read_text()
        assert server.client.post("/plain/generate").status_code == 200


def test_who_serves_nothing_cannot_reload(config: Path) -> None:
    done = reload(config)
    assert (done.returncode, "no server runs here" in done.stderr) == (2, True)

"""Animations as files of every kind, and walks as tasks."""

from __future__ import annotations

import base64
import io
import os
import signal
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from api.engine.codec import MOTION_TYPES, Encoding, animate, encode
from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config
from tests.test_tasks import events

FRAMES, FPS, TEXT = 7, 20, "Seed: 3, Model: m"


def pictures(side: int = 32) -> list[Any]:
    """A ramp that changes its colour from frame to frame."""
    line = np.linspace(0, 255, side).astype(np.uint8)
    shades = [np.full((side, side), 30 * i, np.uint8) for i in range(FRAMES)]
    return [np.stack([np.tile(line, (side, 1)), np.tile(line[:, None], (1, side)), shade], axis=2) for shade in shades]


def film(data: bytes) -> tuple[list[Any], float, Any]:
    """Frames (RGB), frames a second, and the stream."""
    with av.open(io.BytesIO(data), "r") as container:
        (stream,) = container.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate is not None
        return frames, float(stream.average_rate), (stream.codec_context.name, stream.codec_context.pix_fmt, container.metadata)


def animation(data: bytes) -> tuple[list[Any], list[float]]:
    """Frames (RGB), and how many milliseconds each is shown."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["loop"] == 0
        shown = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
    return [pixels for pixels, _ in shown], [duration for _, duration in shown]


@pytest.mark.parametrize(("kind", "error"), [("webp", 4.0), ("gif", 12.0), ("apng", 0.0)])
def test_an_animation_has_all_frames_for_as_long_as_they_last(kind: Any, error: float) -> None:
    made = pictures()
    files = [encode(pixels, Encoding("png")) for pixels in made]
    data = animate(files, kind, FPS, TEXT)
    found, durations = animation(data)
    assert durations == [1000 / FPS] * FRAMES
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(found, made, strict=True)) <= error
    assert animate(files, kind, FPS, TEXT) == data


@pytest.mark.parametrize("side", [16, 32, 64, 256])
def test_a_film_is_what_browsers_play(side: int) -> None:
    made = pictures(side)
    files = [encode(pixels, Encoding("png")) for pixels in made]
    data = animate(files, "mp4", FPS, TEXT)
    found, rate, (codec, layout, metadata) = film(data)
    assert (len(found), rate) == (FRAMES, FPS)
    assert (codec, layout) == ("h264", "yuv420p")
    assert metadata["comment"] == TEXT
    assert data[4:8] == b"ftyp"
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(found, made, strict=True)) < (8 if side < 64 else 4)
    assert {animate(files, "mp4", FPS, TEXT) for _ in range(10)} == {data}
    assert MOTION_TYPES["mp4"] == "video/mp4"


# Over HTTP.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("animation")
    tiny_precure(folder / "m.safetensors", categories=3, levels=4)
    models = {"m": {"file": "m.safetensors", "relative": True}}
    config = write_config(folder, models, {"engine": {"threads": 1, "max_queue": 40}}, store={"history": True})
    with serve(config) as running:
        yield running


def test_a_walk_may_be_a_film(server: Running) -> None:
    walk = {"seeds": [1, 2, 3], "frames": 11, "fps": 25, "seed": 9, "label": "cat1", "loop": True}
    told = server.client.post("/m/interpolate", json={**walk, "format": "mp4"}).json()
    assert (told["mimeType"], told["frames"], told["fps"], told["seed"], told["label"]) == ("video/mp4", 11, 25, 9, "cat1")
    bare = server.client.post("/m/interpolate", json=walk, headers={"Accept": "video/mp4"})
    assert bare.headers["content-type"] == "video/mp4"
    assert bare.content == base64.b64decode(told["data"])
    found, rate, _ = film(bare.content)
    assert (len(found), rate) == (11, 25)
    exact, _ = animation(server.client.post("/m/interpolate", json=walk, headers={"Accept": "image/apng"}).content)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(found, exact, strict=True)) < 12


def test_a_walk_longer_than_the_queue_is_made(server: Running) -> None:
    walk = {"seeds": [1, 2], "frames": 120, "format": "apng"}
    answer = server.client.post("/m/interpolate", json=walk)
    assert answer.status_code == 200, answer.text
    assert len(animation(base64.b64decode(answer.json()["data"]))[0]) == 120


@pytest.mark.parametrize("kind", ["mp4", "webp"])
def test_a_walk_as_a_task_is_the_routes_and_tells_its_frames(server: Running, kind: str) -> None:
    walk = {"seeds": [1, 2], "frames": 100, "fps": 10, "seed": 4, "label": "cat0", "format": kind}
    params = {"params_type": "interpolate", "model": "m", "previews": 3, **walk}
    task_id = server.client.post("/task", json=params).json()
    told = events(server, task_id)
    assert told[-1][1] == "finished", told[-1]
    progress = [data for _, which, data in told if which == "progress"]
    assert progress
    assert {data["steps"] for data in progress} == {100}
    assert [data["step"] for data in progress] == sorted(data["step"] for data in progress)
    image = told[-1][2]["image"]
    blob = server.client.get(f"/blob/{image['blob_id']}")
    assert blob.headers["content-type"] == MOTION_TYPES[kind]  # type: ignore[index]
    direct = server.client.post("/m/interpolate", json=walk, headers={"Accept": MOTION_TYPES[kind]})  # type: ignore[index]
    assert blob.content == direct.content
    assert image["parameters_used"]["seed"] == 4
    kept = server.client.get(f"/images/{image['image_id']}/file")
    assert kept.content == blob.content
    small = server.client.get(f"/images/{image['image_id']}/thumbnail")
    assert small.headers["content-type"] == "image/webp"
    Image.open(io.BytesIO(small.content)).load()
    again = server.client.post(f"/images/{image['image_id']}/regenerate")
    assert again.status_code == 200, again.text
    assert again.content == blob.content


def test_wrong_walks_are_refused_as_tasks_too(server: Running) -> None:
    for wrong in ({}, {"seeds": [1]}, {"seeds": [1, 2], "frames": 301}, {"seeds": [1, 2], "format": "png"}):
        assert server.client.post("/task", json={"params_type": "interpolate", "model": "m", **wrong}).status_code == 422


def test_a_walk_is_cancelled_and_leaves_the_lane_free(server: Running) -> None:
    (engine,) = server.engines()
    os.kill(engine, signal.SIGSTOP)  # the walk cannot end before it is cancelled
    try:
        task_id = server.client.post("/task", json={"params_type": "interpolate", "model": "m", "seeds": [1, 2], "frames": 300}).json()
        assert server.client.delete(f"/task/{task_id}").status_code == 204
        assert events(server, task_id)[-1][1] == "cancelled"
    finally:
        os.kill(engine, signal.SIGCONT)
    assert server.client.post("/m/generate?seed=1").status_code == 200

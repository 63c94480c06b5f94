"""Editing over HTTP and WebSocket on a real server, and the arithmetic of paths."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from api.models import paths
from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config
from tests.test_http import npy, picture, unpack

SEED = 5
LEVELS, SIZE = 4, 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("editing")
    random = np.random.default_rng(SEED)
    tiny_precure(folder / "m.safetensors", categories=3, levels=LEVELS)
    np.savez(folder / "d.npz", smile=random.standard_normal(SIZE).astype(np.float32), deep=random.standard_normal((LEVELS, SIZE)))
    directions = {
        "smile": {"file": "d.npz", "strength": 2.0, "description": "more of it"},
        "other": {"file": "d.npz", "entry": "deep"},
    }
    models = {"m": {"file": "m.safetensors", "relative": True, "directions": directions}}
    limit = {"rate": {"enabled": True, "max_request": 100_000}}
    with serve(write_config(folder, models, {"limit": limit, "engine": {"threads": 1}})) as running:
        yield running


def edit(server: Running, status: int = 200, **body: Any) -> Any:
    answer = server.client.post("/m/edit", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def rows(answer: Any) -> Any:
    return np.stack([unpack(style) for style in answer["styles"]])


def vector(server: Running, name: str) -> Any:
    return np.load(server.folder / "d.npz")[name]


def test_directions_are_told_with_those_of_the_checkpoint(server: Running) -> None:
    told = server.client.get("/m/directions").json()
    assert told[0] == {"name": "smile", "description": "more of it", "strength": 2.0, "levels": None}
    assert [direction["name"] for direction in told[1:4]] == ["other", "sefa-1", "sefa-2"]
    assert all(direction["description"] for direction in told[2:])
    assert server.client.get("/nobody/directions").status_code == 404


def test_without_directions_it_is_the_generated_picture(server: Running) -> None:
    plain = server.client.post("/m/generate?seed=3&label=cat1&psi=0.7").json()
    edited = edit(server, seed=3, label="cat1", psi=0.7)
    assert edited["data"] == plain["data"]
    assert (edited["label"], edited["seed"], edited["latent"]) == ("cat1", 3, plain["latent"])
    assert all(style == plain["style"] for style in edited["styles"])
    again = edit(server, seed=3, latent=plain["latent"], label="cat1", psi=0.7)
    assert np.array_equal(picture(again["data"]), picture(plain["data"]))


def test_edits_add_up_whatever_their_order_and_chain(server: Running) -> None:
    base = rows(edit(server, seed=3, label="cat0"))
    both = edit(server, seed=3, label="cat0", directions={"smile": 0.5, "other": -0.2, "sefa-1": 1})
    assert np.allclose(
        rows(both) - base - vector(server, "smile") * 2 * 0.5 + vector(server, "deep") * 0.2,
        rows(edit(server, seed=3, label="cat0", directions={"sefa-1": 1})) - base,
        atol=1e-5,
    )
    turned = edit(server, seed=3, label="cat0", directions={"sefa-1": 1, "other": -0.2, "smile": 0.5})
    assert (turned["data"], turned["styles"]) == (both["data"], both["styles"])
    first = edit(server, seed=3, label="cat0", directions={"smile": 0.5})
    second = edit(server, seed=3, styles=first["styles"], directions={"other": -0.2, "sefa-1": 1})
    assert np.allclose(rows(second), rows(both), atol=1e-5)
    assert np.abs(picture(second["data"]).astype(int) - picture(both["data"])).max() <= 1
    assert not np.array_equal(picture(first["data"]), picture(both["data"]))


def test_layers_keep_a_direction_to_their_levels(server: Running) -> None:
    base = rows(edit(server, seed=4, label="cat0"))
    moved = rows(edit(server, seed=4, label="cat0", directions={"smile": 1}, layers={"smile": [0, 2]}))
    assert np.array_equal(moved[[1, 3]], base[[1, 3]])
    assert np.allclose(moved[[0, 2]], base[[0, 2]] + 2 * vector(server, "smile"), atol=1e-5)
    one = unpack(edit(server, seed=4, styles=[npy(base[0])])["styles"][3])
    assert np.array_equal(one, base[0])


def test_a_bare_picture_carries_its_recipe(server: Running) -> None:
    answer = server.client.post("/m/edit", json={"seed": 3, "label": "cat0", "directions": {"smile": 0.5}}, headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert json.loads(answer.headers["x-recipe"])["Directions"] == {"smile": 0.5}
    assert '"{\\"smile\\": 0.5}"' in str(Image.open(io.BytesIO(answer.content)).info["parameters"])


def test_wrong_edits_are_refused_by_name(server: Running) -> None:
    assert edit(server, 404, directions={"frown": 1})["detail"] == {"type": "direction", "name": "frown", "msg": "no such direction"}
    assert edit(server, 404, label="dog")["detail"]["type"] == "label"
    assert "0 to 3" in edit(server, 422, directions={"smile": 1}, layers={"smile": [4]})["detail"]
    assert "not among" in edit(server, 422, layers={"smile": [1]})["detail"]
    assert "one of them" in edit(server, 422, styles=[npy(np.zeros(SIZE, np.float32))], latent=npy(np.zeros(SIZE, np.float32)))["detail"]
    assert "psi" in edit(server, 422, styles=[npy(np.zeros(SIZE, np.float32))], psi=0.5)["detail"]
    wrong: tuple[dict[str, Any], ...] = (
        {"directions": {"smile": 101}},
        {"layers": {"smile": []}},
        {"directions": {"smile": None}},
        {"seed": -1},
        {"noise": "const"},
    )
    for body in wrong:
        edit(server, 422, **body)
    edit(server, 415, latent="!")
    edit(server, 422, styles=[npy(np.zeros(SIZE + 1, np.float32))])


def walk(server: Running, accept: str = "application/json", status: int = 200, **body: Any) -> Any:
    answer = server.client.post("/m/interpolate", json=body, headers={"Accept": accept})
    assert answer.status_code == status, answer.text
    return answer


def frames(content: bytes) -> list[Any]:
    with Image.open(io.BytesIO(content)) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize(("kind", "exact"), [("webp", False), ("gif", False), ("apng", True)])
def test_a_walk_is_an_animation_from_seed_to_seed(server: Running, kind: str, exact: bool) -> None:
    told = walk(server, seeds=[1, 2], frames=5, fps=10, format=kind, seed=9, label="cat2", noise="none").json()
    assert (told["mimeType"], told["frames"], told["fps"], told["seed"], told["label"]) == (f"image/{kind}", 5, 10, 9, "cat2")
    data = base64.b64decode(told["data"])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.size, image.info["loop"]) == ((told["width"], told["height"]), 0)
        image.load()
        assert image.info["duration"] == 100
    ends = [picture(server.client.post(f"/m/generate?seed={seed}&label=cat2&noise=none").json()["data"]) for seed in (1, 2)]
    made = frames(data)
    assert len(made) == 5
    if exact:
        assert np.array_equal(made[0], ends[0])
        assert np.array_equal(made[-1], ends[1])
    assert not np.array_equal(made[1], made[3])
    bare = walk(server, f"image/{kind}", seeds=[1, 2], frames=5, fps=10, seed=9, label="cat2", noise="none")
    assert bare.headers["content-type"] == f"image/{kind}"
    assert bare.content == data
    assert json.loads(bare.headers["x-recipe"])["Points"] == "1 2"


def test_a_walk_between_styles_is_straight_and_a_loop_returns(server: Running) -> None:
    ends = [edit(server, seed=seed, label="cat0", noise="none")["styles"] for seed in (1, 2, 3)]
    middle = npy((unpack(ends[0][0]) + unpack(ends[1][0])) / 2)
    straight = walk(server, "image/apng", styles=[ends[0], ends[1][0]], frames=3, noise="none")
    expected = picture(edit(server, styles=[middle], noise="none")["data"])
    assert np.abs(frames(straight.content)[1].astype(int) - expected).max() <= 1
    loop = frames(walk(server, "image/apng", styles=ends, frames=6, loop=True, noise="none").content)
    assert np.array_equal(loop[0], frames(straight.content)[0])
    assert np.abs(loop[2].astype(int) - frames(straight.content)[2]).max() <= 1
    again = frames(walk(server, "image/apng", seeds=[1, 2, 3], frames=6, loop=True, noise="none", label="cat0").content)
    assert np.array_equal(again[0], loop[0])


def test_wrong_walks_are_refused(server: Running) -> None:
    for body in (
        {},
        {"seeds": [1]},
        {"seeds": [1, 2], "latents": ["x", "y"]},
        {"seeds": [1, 2], "frames": 301},
        {"seeds": [1, 2], "fps": 0},
    ):
        walk(server, status=422, **body)
    walk(server, status=404, seeds=[1, 2], label="dog")
    walk(server, status=422, styles=[npy(np.zeros(SIZE, np.float32))] * 2, psi=0.5)
    walk(server, "text/html", status=406, seeds=[1, 2])


def test_paths_meet_their_points_and_stay_on_the_sphere() -> None:
    random = np.random.default_rng(SEED)
    points = random.standard_normal((3, 64)).astype(np.float32)
    for path in (paths.linear(points, 9), paths.spherical(points, 9)):
        assert np.allclose(path[[0, 4, 8]], points, atol=1e-5)
    lengths = np.linalg.norm(points, axis=1)
    path = paths.spherical(points, 21)
    assert np.allclose(np.linalg.norm(path, axis=1), np.interp(np.linspace(0, 2, 21), range(3), lengths), atol=1e-4)
    steps = (path[:10] * path[1:11]).sum(1) / np.linalg.norm(path[:10], axis=1) / np.linalg.norm(path[1:11], axis=1)
    assert np.ptp(np.arccos(steps)) < 1e-3
    fine = paths.closed(points, 3000).astype(float)
    assert np.allclose(fine[[0, 1000, 2000]], points, atol=1e-5)
    bends = np.linalg.norm(np.diff(np.concatenate([fine, fine[:2]]), 2, axis=0), axis=1)
    assert bends.max() < 1e-5 * np.linalg.norm(points)  # a corner would bend a thousandth
    loop = paths.closed(points, 300)
    kept = paths.keep_lengths(loop, points)
    assert np.allclose(np.linalg.norm(kept, axis=1), np.interp(np.arange(300) / 100, range(4), [*lengths, lengths[0]]), atol=1e-3)
    assert np.isfinite(paths.spherical(np.stack([points[0], -points[0], np.zeros(64)]), 7)).all()
    assert paths.linear(random.standard_normal((2, 4, 3)).astype(np.float32), 5).shape == (5, 4, 3)


def test_a_viewer_sees_the_last_change(server: Running) -> None:
    asyncio.run(view(server))


async def ask(socket: ClientConnection, **change: Any) -> tuple[dict[str, Any], bytes]:
    await socket.send(json.dumps(change))
    return await hear(socket)


async def hear(socket: ClientConnection) -> tuple[dict[str, Any], bytes]:
    told = json.loads(await asyncio.wait_for(socket.recv(), 20))
    data = b"" if "detail" in told else await asyncio.wait_for(socket.recv(), 20)
    assert isinstance(data, bytes)
    return told, data


async def view(server: Running) -> None:
    url = server.url.replace("http", "ws") + "/m/live"
    with pytest.raises(InvalidStatus):
        await connect(url.replace("/m/", "/nobody/"))
    remaining = quota(server)
    async with connect(url + "?token=secret", max_size=None) as socket:
        told, first = await ask(socket, seed=3, label="cat0", directions={"smile": 0.5})
        assert told == {"change": 1, "seed": 3, "label": "cat0", "mimeType": "image/png"}
        known = edit(server, seed=3, label="cat0", directions={"smile": 0.5})
        assert first == base64.b64decode(known["data"])
        _, second = await ask(socket, directions={"smile": 1}, format="webp")
        assert np.asarray(Image.open(io.BytesIO(second))).shape == (32, 32, 3)
        for wrong in ({"directions": {"frown": 1}}, {"psi": 9}, {"seed": "x"}):
            told, _ = await ask(socket, **wrong)
            assert told["detail"]
        for text in ("[]", "{", "\x00", json.dumps({"latent": "A" * (1 << 20)})):
            await socket.send(text)
            assert "detail" in (await hear(socket))[0]
        sent = 300
        for i in range(sent):
            await socket.send(json.dumps({"directions": {"smile": i / sent}, "format": "png"}))
        seen: list[tuple[dict[str, Any], bytes]] = []
        while not seen or seen[-1][0]["change"] < sent + 9:
            seen.append(await hear(socket))
        changes = [told["change"] for told, _ in seen]
        assert changes == sorted(set(changes))
        assert len(seen) < sent  # most changes were overtaken
        last = edit(server, seed=3, label="cat0", directions={"smile": (sent - 1) / sent})
        assert seen[-1][1] == base64.b64decode(last["data"])
        told, _ = await ask(socket, styles=known["styles"])  # which takes the label's place
        assert told["label"] is None
        told, _ = await ask(socket, seed=8)
        assert told["seed"] == 8
    assert remaining - quota(server) == 4  # this connection, two edits, and the asking itself


def quota(server: Running) -> int:
    fields = server.client.post("/m/edit", json={"seed": 1}).headers["ratelimit"]
    return int(fields.split(";r=")[1].split(";")[0])


def test_viewers_that_leave_take_their_work_along(server: Running) -> None:
    async def leave() -> None:
        url = server.url.replace("http", "ws") + "/m/live"
        sockets = await asyncio.gather(*(connect(url) for _ in range(8)))
        for _ in range(20):
            await asyncio.gather(*(socket.send("{}") for socket in sockets))
        for socket in sockets:
            socket.transport.abort()

    asyncio.run(leave())
    assert edit(server, seed=1)["seed"] == 1
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "/m/live?token=…" in log
    assert "secret" not in log

"""What is kept of pictures, whichever route makes them: real servers with tiny networks, over SQLite and PostgreSQL."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.sync.client import connect

from api.store.keys import hash_key, make_key
from tests.databases import KINDS
from tests.history import found, get, make, session_of, write
from tests.serving import Running, serve


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(write(tmp_path_factory.mktemp("history"), request.param)) as running:
        yield running


def test_a_picture_is_kept_with_all_that_is_known_of_it(server: Running) -> None:
    (image_id,), answer = make(server, "/classes/generate?seed=7&psi=0.5", headers={"Accept": "image/png", "X-Session": "a%20walk"})
    told = get(server, f"/images/{image_id}")
    assert (told["kind"], told["model"], told["seed"], told["mime_type"]) == ("generate", "classes", 7, "image/png")
    assert told["label"] in ("cat0", "cat1", "cat2")
    assert told["recipe"]["Psi"] == 0.5
    file = server.client.get(told["file"])
    assert (file.content, file.headers["content-type"]) == (answer.content, "image/png")
    assert server.client.get(told["file"], headers={"If-None-Match": file.headers["etag"]}).status_code == 304
    assert server.client.get(told["thumbnail"]).content == answer.content  # it is small
    assert (told["session"], found(server, session=told["session"])) == (session_of(server, "a walk"), [image_id])


def test_the_newest_come_first_and_pages_meet_each_once(server: Running) -> None:
    ids, _ = make(server, "/plain/generate?seed=1&count=5", headers={"X-Session": "pages"})
    query: dict[str, Any] = {"session": session_of(server, "pages"), "limit": 2}
    met: list[str] = []
    while True:
        page = get(server, "/images", **query)
        met += [image["id"] for image in page["images"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert met == ids[::-1]


def test_an_animation_is_one_picture_with_a_thumbnail(server: Running) -> None:
    body = {"seeds": [1, 2], "frames": 3, "format": "gif"}
    (image_id,), _ = make(server, "/plain/interpolate", json=body, headers={"X-Session": "walks"})
    told = get(server, f"/images/{image_id}")
    assert (told["kind"], told["mime_type"]) == ("interpolate", "image/gif")
    assert found(server, session=told["session"]) == [image_id]
    assert server.client.get(told["file"]).content.startswith(b"GIF89a")


def test_pictures_without_post_are_kept_too(server: Running) -> None:
    answer = server.client.get("/plain/image?seed=3", headers={"Accept": "image/webp"})
    told = get(server, f"/images/{answer.headers['x-image-id']}")
    assert (told["mime_type"], server.client.get(told["file"]).content) == ("image/webp", answer.content)


# Where they come from.


def test_parents_and_children_know_each_other(server: Running) -> None:
    parents, answer = make(server, "/plain/generate?seed=1&count=2")
    style = answer.json()["style"]
    (child,), _ = make(
        server, "/plain/edit", json={"styles": [style], "directions": {"sefa-1": 1.5}}, headers={"X-Parents": ",".join(parents)}
    )
    told = get(server, f"/images/{child}")
    assert (sorted(told["parents"]), told["directions"]) == (sorted(parents), {"sefa-1": 1.5})
    assert get(server, f"/images/{parents[0]}")["children"] == [child]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Parents": "0" * 32}, 404),
        ({"X-Parents": "x"}, 404),
        ({"X-Parents": " ".join(f"{n:032x}" for n in range(17))}, 422),
        ({"X-Session": "x" * 201}, 422),
        ({"X-Session": "%00"}, 422),
        ({"X-Session": "%20"}, 422),
    ],
)
def test_a_wrong_origin_is_told_before_anything_is_computed(server: Running, headers: dict[str, str], status: int) -> None:
    answer = server.client.post("/plain/generate", headers=headers)
    assert (answer.status_code, "x-image-id" in answer.headers) == (status, False)


def test_a_session_is_named_by_header_or_cookie_and_is_one_for_all(server: Running) -> None:
    (first,), _ = make(server, headers={"X-Session": "one"})
    session_id = get(server, f"/images/{first}")["session"]
    (second,), _ = make(server, headers={"X-Session": session_id})
    (third,), _ = make(server, headers={"Cookie": "session=one"})
    assert found(server, session=session_id) == [third, second, first]
    (none,), _ = make(server, headers={"Cookie": "session=" + "x" * 300})
    assert get(server, f"/images/{none}")["session"] is None


# Tasks, live editing, OpenAI's routes.


def test_a_task_keeps_its_picture_when_it_is_finished(server: Running) -> None:
    (parent,), _ = make(server)
    params = {"params_type": "generate", "model": "plain", "seed": 9, "parents": [parent]}
    task_id = server.client.post("/task", json=params, headers={"X-Session": "tasks"}).json()
    with server.client.stream("GET", f"/task/{task_id}/events") as answer:
        last = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")][-1]
    assert last["event_type"] == "finished", last
    told = get(server, f"/images/{last['image']['image_id']}")
    assert (told["task_id"], told["seed"], told["parents"], told["blob_id"]) == (task_id, 9, [parent], last["image"]["blob_id"])
    assert told["session"] == session_of(server, "tasks")
    assert regenerate(server, told["id"]).content == server.client.get(told["file"]).content
    wrong = server.client.post("/task", json=params | {"parents": ["0" * 32]})
    assert wrong.status_code == 404


def test_a_live_picture_is_kept_on_wish(server: Running) -> None:
    with connect(f"ws{server.url[4:]}/plain/live?session=live") as socket:
        for change in ({"seed": 1}, {"seed": 2, "keep": True}, {"psi": 0.5}):
            socket.send(json.dumps(change))
            told, picture = json.loads(socket.recv(60)), socket.recv(60)
            assert ("image_id" in told) == ("keep" in change)
            if "image_id" in told:
                assert server.client.get(f"/images/{told['image_id']}/file").content == picture
                assert found(server, session=session_of(server, "live")) == [told["image_id"]]


def test_a_stream_tells_the_ids(server: Running) -> None:
    body = {"prompt": "seed 5", "model": "plain", "n": 2, "stream": True}
    with server.client.stream("POST", "/v1/images/generations", json=body) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [get(server, f"/images/{event['image_id']}")["seed"] for event in events if event["type"].endswith("completed")] == [5, 6]


# Made again.


def regenerate(server: Running, image_id: str) -> httpx.Response:
    answer = server.client.post(f"/images/{image_id}/regenerate")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-image-id"] == image_id
    return answer


def style_of(server: Running, seed: int) -> str:
    style: str = server.client.post(f"/plain/generate?seed={seed}").json()["style"]
    return style


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classes/generate?psi=0.6&noise=none", None),
        ("/plain/blend?weights=1&weights=2&seed=3", {"styles": [1, 2]}),
        ("/plain/mix?seed=3", {"styles": [1, 2, 1]}),
        ("/classes/edit", {"seed": 4, "directions": {"sefa-1": 2.0}, "layers": {"sefa-1": [0, 1]}}),
        ("/plain/interpolate", {"seeds": [1, 2, 3], "frames": 4, "loop": True, "format": "apng"}),
        ("/v1/images/generations", {"prompt": "seed 5", "model": "classes", "output_format": "webp", "output_compression": 60}),
    ],
)
def test_every_route_keeps_what_makes_the_same_bytes_again(server: Running, path: str, body: Any) -> None:
    if body and "styles" in body:
        body = {"styles": [style_of(server, seed) for seed in body["styles"]]}
    (image_id,), _ = make(server, path, json=body)
    kept = server.client.get(f"/images/{image_id}/file")
    again = regenerate(server, image_id)
    assert (again.content, again.headers["content-type"]) == (kept.content, kept.headers["content-type"])


def test_large_pictures_have_thumbnails(tmp_path: Path) -> None:
    from tests.checkpoints import tiny_precure

    config = write(tmp_path)
    tiny_precure(tmp_path / "plain.safetensors", levels=8, first_channels=8, last_channels=4)
    with serve(config) as server:
        (image_id,), answer = make(server, headers={"Accept": "image/png"})
        assert Image.open(io.BytesIO(answer.content)).size == (512, 512)
        small = server.client.get(f"/images/{image_id}/thumbnail")
        assert (small.headers["content-type"], Image.open(io.BytesIO(small.content)).size) == ("image/webp", (256, 256))
        (walk,), _ = make(server, "/plain/interpolate", json={"seeds": [1, 2], "frames": 2})
        assert Image.open(io.BytesIO(server.client.get(f"/images/{walk}/thumbnail").content)).size == (256, 256)


def test_a_changed_model_is_told_instead_of_another_picture(tmp_path: Path) -> None:
    from tests.checkpoints import tiny_precure

    config = write(tmp_path)
    with serve(config) as server:
        (image_id,), _ = make(server, "/plain/generate?seed=1")
        (gone,), _ = make(server, "/classes/generate?seed=1")
    tiny_precure(tmp_path / "plain.safetensors", levels=3, seed=5)
    config.write_text(config.read_text().replace("[models.classes]", "[models.others]"))
    with serve(config) as server:
        for each in (image_id, gone):
            assert server.client.post(f"/images/{each}/regenerate").status_code == 409
            assert server.client.get(f"/images/{each}/file").status_code == 200


# Whose they are.


def test_nothing_is_kept_unless_the_toml_says_so(tmp_path: Path) -> None:
    with serve(write(tmp_path, store={"history": False})) as server:
        answer = server.client.post("/plain/generate", headers={"X-Session": "x", "X-Parents": "0" * 32})
        assert (answer.status_code, "x-image-id" in answer.headers) == (200, False)
        for path in ("/images", f"/images/{'0' * 32}/file", "/sessions", "/collections", "/tags", "/images/export"):
            assert server.client.get(path).status_code == 403
        assert not (tmp_path / "data").exists()


def test_nobody_sees_what_is_another_s(tmp_path: Path) -> None:
    keys = {"ann": make_key(), "bob": make_key()}
    config = write(tmp_path, auth={"enabled": True, "api_keys": {name: hash_key(key) for name, key in keys.items()}})
    with serve(config) as server:
        ann, bob = ({"Authorization": f"Bearer {key}"} for key in keys.values())
        (image_id,), _ = make(server, headers=ann | {"X-Session": "s"})
        box = server.client.post("/collections", json={"name": "box"}, headers=ann).json()["id"]
        session_id = server.client.get(f"/images/{image_id}", headers=ann).json()["session"]
        assert server.client.get("/images", headers=bob).json()["images"] == []
        assert server.client.get("/images", headers=bob, params={"session": session_id}).json()["images"] == []
        asked = [
            ("GET", ""),
            ("GET", "/file"),
            ("GET", "/thumbnail"),
            ("PATCH", ""),
            ("DELETE", ""),
            ("POST", "/restore"),
            ("POST", "/regenerate"),
        ]
        for method, rest in asked:
            assert server.client.request(method, f"/images/{image_id}{rest}", headers=bob, json={}).status_code == 404, (method, rest)
        for path in (f"/collections/{box}", f"/sessions/{session_id}", f"/collections/{box}/images", f"/sessions/{session_id}/images"):
            assert server.client.get(path, headers=bob).status_code == 404
        assert server.client.post(f"/collections/{box}/images", headers=bob, json={"add": [image_id]}).status_code == 404
        assert server.client.post("/tags/x/images", headers=bob, json={"add": [image_id]}).status_code == 404
        assert server.client.post("/images/export", headers=bob, json={"ids": [image_id]}).status_code == 404
        assert server.client.post("/plain/generate", headers=bob | {"X-Parents": image_id}).status_code == 404
        assert server.client.get("/images").status_code == 401
        token = keys["ann"]
        for rest in ("file", "thumbnail"):  # as an <img> asks
            assert server.client.get(f"/images/{image_id}/{rest}", params={"token": token}).status_code == 200
        assert server.client.get(f"/images/{image_id}", params={"token": token}).status_code == 401

"""Tasks, their events and blobs over HTTP, on real servers with tiny networks."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.checkpoints import tiny_precure
from tests.databases import KINDS, new_url
from tests.serving import Running, inside, serve, write_config

COUNT = 200 if os.environ.get("LONG") else 60


def write(folder: Path, **sections: Any) -> Path:
    tiny_precure(folder / "plain.safetensors", levels=3)
    tiny_precure(folder / "classes.safetensors", categories=3, levels=4, seed=1)
    models = {name: {"file": f"{name}.safetensors", "relative": True} for name in ("plain", "classes")}
    return write_config(folder, models, **sections)


def kept(kind: str) -> dict[str, Any]:
    """The TOML's section for a new database."""
    url = new_url(kind)
    return {} if url is None else {"store": {"url": url}}


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    config = write(tmp_path_factory.mktemp("tasks"), blobs={"max_size": 100_000, "max_pixels": 10_000}, **kept(request.param))
    with serve(config) as running:
        yield running


def post(server: Running, params: dict[str, Any], **headers: str) -> httpx.Response:
    return server.client.post("/task", json=params, headers=headers)


def create(server: Running, **params: Any) -> str:
    answer = post(server, {"params_type": "generate", **params})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/task/{answer.json()}"
    task_id: str = answer.json()
    return task_id


def parse(lines: Iterator[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Server-sent events: id, type, data."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}


def events(server: Running, task_id: str, **headers: str) -> list[tuple[int, str, dict[str, Any]]]:
    with server.client.stream("GET", f"/task/{task_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(parse(answer.iter_lines()))


def finish(server: Running, task_id: str) -> dict[str, Any]:
    *_, (_, kind, data) = events(server, task_id)
    assert kind == "finished", data
    return data


def test_nothing_is_stored_before_it_is_needed(tmp_path: Path) -> None:
    with serve(write(tmp_path)) as running:
        assert running.client.post("/plain/generate?seed=1").status_code == 200
        assert not (tmp_path / "data").exists()
        finish(running, create(running, seed=1))
        assert (tmp_path / "data" / "store.sqlite").exists()


def test_a_task_makes_the_picture_that_the_route_makes(server: Running) -> None:
    task_id = create(server, model="classes", seed=7, psi=0.5)
    told = events(server, task_id)
    assert [number for number, _, _ in told] == [1, 2, 3]
    assert [kind for _, kind, _ in told] == ["pending", "started", "finished"]
    assert told[0][2]["position"] >= 0
    assert all(data["task_id"] == task_id and data["event_type"] == kind for _, kind, data in told)
    made = told[-1][2]["image"]
    assert made["parameters_used"]["seed"] == 7
    assert made["parameters_used"]["label"] in server.client.get("/models/").json()[1]["labels"]
    blob = server.client.get(f"/blob/{made['blob_id']}")
    assert blob.headers["content-type"] == "image/png"
    query = {"seed": 7, "psi": 0.5}
    assert blob.content == server.client.get("/classes/image", params=query).content
    assert server.client.get(f"/task/{task_id}").json() == told[-1][2]


def test_styles_can_be_tasks_too(server: Running) -> None:
    style = server.client.post("/plain/generate?seed=1").json()["style"]
    for kind in ("blend", "mix"):
        task_id = create(server, params_type=kind, styles=[style, style], seed=3)
        blob_id = finish(server, task_id)["image"]["blob_id"]
        direct = server.client.post(f"/plain/{kind}?seed=3", json={"styles": [style, style]}, headers={"accept": "image/png"})
        assert server.client.get(f"/blob/{blob_id}").content == direct.content


def test_a_seed_is_drawn_and_told(server: Running) -> None:
    seeds = [finish(server, create(server))["image"]["parameters_used"]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]


def test_formats_can_be_chosen(server: Running) -> None:
    made = finish(server, create(server, format="webp"))
    assert server.client.get(f"/blob/{made['image']['blob_id']}").headers["content-type"] == "image/webp"


def test_a_repeated_post_is_the_same_task(server: Running) -> None:
    params = {"params_type": "generate", "psi": 0.3}
    ids = {post(server, params, **{"Idempotency-Key": "once"}).json() for _ in range(3)}
    assert len(ids) == 1
    assert post(server, params | {"psi": 0.4}, **{"Idempotency-Key": "once"}).status_code == 409
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: post(server, params, **{"Idempotency-Key": "together"}).json(), range(8)))
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"params_type": "generate", "model": "none"}, 404),
        ({"params_type": "generate", "label": "nobody", "model": "classes"}, 404),
        ({"params_type": "generate", "psi": 3}, 422),
        ({"params_type": "generate", "count": 2}, 422),
        ({"params_type": "generate", "latent": "AAAA"}, 415),
        ({"params_type": "other"}, 422),
        ({"params_type": "mix", "styles": []}, 422),
        ({}, 422),
    ],
)
def test_bad_parameters_are_told_at_once(server: Running, params: dict[str, Any], status: int) -> None:
    assert post(server, params).status_code == status


def test_unknown_tasks_and_blobs_are_404(server: Running) -> None:
    for path in ("/task/x", f"/task/{'0' * 32}", f"/task/{'0' * 32}/events", f"/blob/{'0' * 32}", "/blob/x"):
        assert server.client.get(path).status_code == 404
    assert server.client.delete(f"/task/{'0' * 32}").status_code == 404


def test_a_reader_gets_what_it_missed(server: Running) -> None:
    task_id = create(server)
    whole = events(server, task_id)
    assert events(server, task_id, **{"Last-Event-ID": "1"}) == whole[1:]
    with server.client.stream("GET", f"/task/{task_id}/events", params={"since": 2}) as answer:
        assert list(parse(answer.iter_lines())) == whole[2:]
    assert server.client.get(f"/task/{task_id}/events", headers={"Last-Event-ID": "3"}).status_code == 204
    assert server.client.get(f"/task/{task_id}/events", headers={"Last-Event-ID": "x"}).status_code == 422


def test_an_ended_task_cannot_be_cancelled_any_more(server: Running) -> None:
    task_id = create(server)
    finish(server, task_id)
    assert server.client.delete(f"/task/{task_id}").status_code == 204
    assert server.client.get(f"/task/{task_id}").json()["event_type"] == "finished"


def test_one_socket_tells_of_all_tasks(server: Running) -> None:
    address = f"ws{server.url[4:]}/events"
    with connect(address) as socket:
        ids = [create(server, seed=seed) for seed in range(3)]
        told: list[dict[str, Any]] = []
        while sum(event["event_type"] == "finished" for event in told if event["task_id"] in ids) < 3:
            told.append(json.loads(socket.recv(20)))
    numbers = [event["id"] for event in told]
    assert numbers == sorted(set(numbers))
    with connect(f"{address}?since={numbers[3]}") as socket:
        assert [json.loads(socket.recv(20)) for _ in numbers[4:]] == told[4:]
    with pytest.raises(InvalidStatus):
        connect(f"{address}?since=x")


# Blobs.


def encode(size: tuple[int, int] = (20, 10), format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (*size, 3), np.uint8)).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("form", [False, True])
def test_a_blob_comes_back_as_it_was_sent(server: Running, format: str, form: bool) -> None:
    data = encode(format=format)
    answer = server.client.post("/blob", **({"files": {"file": ("x.txt", data)}} if form else {"content": data}))
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/blob/{answer.json()}"
    back = server.client.get(f"/blob/{answer.json()}")
    assert (back.content, back.headers["content-type"]) == (data, f"image/{format.lower()}")
    assert server.client.get(f"/blob/{answer.json()}", headers={"If-None-Match": back.headers["etag"]}).status_code == 304


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=0-99999", 206, slice(0, None)),
        ("bytes=99999-", 416, slice(0, 0)),
        ("bytes=-0", 416, slice(0, 0)),
        ("bytes=9-3", 200, slice(0, None)),
        ("bytes=0-1,3-4", 200, slice(0, None)),
        ("lines=0-1", 200, slice(0, None)),
        ("bytes=-", 200, slice(0, None)),
    ],
)
def test_parts_of_a_blob(server: Running, asked: str, status: int, part: slice) -> None:
    data = encode()
    url = f"/blob/{server.client.post('/blob', content=data).json()}"
    answer = server.client.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, data[part])
    if status == 206:
        first = part.indices(len(data))[0]
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(data)}"
    assert server.client.get(url, headers={"Range": asked, "If-Range": '"other"'}).content == data


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 415),
        (b"hello", 415),
        (encode()[:60], 415),
        (b"GIF89a" + bytes(50), 415),
        (encode((200, 100)), 413),
        (encode((90, 100)) + bytes(100_000), 413),
    ],
)
def test_what_is_no_fitting_picture_is_refused(server: Running, data: bytes, status: int) -> None:
    assert server.client.post("/blob", content=data).status_code == status


def test_forms_without_a_file_are_refused(server: Running) -> None:
    assert server.client.post("/blob", files={"file": (None, "text")}).status_code == 422
    assert server.client.post("/blob", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 422
    part = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--x--\r\n'
    for kind in ("multipart/form-data; boundary=x; charset=undefined", "Multipart/Form-Data; boundary=x"):
        assert server.client.post("/blob", content=part, headers={"Content-Type": kind}).status_code == 422


def test_a_form_s_type_may_be_written_in_any_case(server: Running) -> None:
    form = server.client.build_request("POST", "/blob", files={"file": encode()})
    form.headers["Content-Type"] = form.headers["Content-Type"].replace("multipart/form-data", "Multipart/Form-Data")
    assert server.client.send(form).status_code == 201


# What outlives what.


@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_engines_are_killed_and_every_task_is_finished_once(tmp_path: Path, kind: str) -> None:
    """Two workers of gunicorn; one of them, and the engine, die again and again."""
    config = write(tmp_path, tasks={"lease": 2.0, "parallel": 4}, **kept(kind))
    with serve(config, workers=2) as running:
        undisturbed = [finish(running, create(running, seed=seed))["image"]["blob_id"] for seed in range(4)]
        pictures = [running.client.get(f"/blob/{blob_id}").content for blob_id in undisturbed]
        ids: list[str] = []
        for number in range(COUNT):
            ids.append(persist(running, number))
            if number % 15 == 7:
                kill_worker(running)
            if number % 25 == 12:
                for pid in running.engines():
                    os.kill(pid, signal.SIGKILL)
        last = [wait(running, task_id) for task_id in ids]
        assert {event["event_type"] for event in last} == {"finished"}, last
        for number, event in enumerate(last):
            assert fetch(running, f"/blob/{event['image']['blob_id']}").content == pictures[number % 4]
        assert len(set(ids)) == len(ids)


def persist(running: Running, number: int) -> str:
    """As a careful client does: the same key again until there is an answer."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            answer = post(running, {"params_type": "generate", "seed": number % 4}, **{"Idempotency-Key": f"n{number}"})
            if answer.status_code == 201:
                return str(answer.json())
        time.sleep(0.05)
    raise AssertionError("no answer")


def fetch(running: Running, path: str) -> httpx.Response:
    end = time.monotonic() + 90
    while True:
        try:
            return running.client.get(path)
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.05)


def wait(running: Running, task_id: str) -> dict[str, Any]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        event: dict[str, Any] = fetch(running, f"/task/{task_id}").json()
        if event["event_type"] in ("finished", "failed", "cancelled"):
            return event
        time.sleep(0.05)
    raise AssertionError(f"{task_id}: {event}")


def kill_worker(running: Running) -> None:
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def test_waiting_tasks_are_cancelled_refused_and_left_to_the_next_server(tmp_path: Path) -> None:
    config = write(tmp_path, server={"engine": {"linger": 60.0}}, tasks={"parallel": 0, "max_pending": 3})
    with serve(config) as running:
        ids = [create(running, seed=seed) for seed in range(3)]
        assert [running.client.get(f"/task/{task_id}").json()["position"] for task_id in ids] == [0, 1, 2]
        answer = post(running, {"params_type": "generate"})
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert running.client.delete(f"/task/{ids[0]}").status_code == 204
        told = running.client.get(f"/task/{ids[0]}").json()
        assert (told["event_type"], told["reason"]) == ("cancelled", "cancelled on request")
        assert running.client.get(f"/task/{ids[1]}").json()["position"] == 0
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(events, running, ids[1])
            time.sleep(0.3)
            begun = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            assert [kind for _, kind, _ in reading.result(60)] == ["pending"]
            running.process.wait(60)
            assert time.monotonic() - begun < 30
        config.write_text(config.read_text().replace("parallel = 0", "parallel = 1"))
        with serve(config) as another:
            assert [wait(another, task_id)["event_type"] for task_id in ids] == ["cancelled", "finished", "finished"]


def test_streams_that_begin_while_the_server_leaves_end_too(tmp_path: Path) -> None:
    config = write(tmp_path, server={"engine": {"linger": 0.2}}, tasks={"parallel": 0})

    async def run() -> None:
        async with asyncio.timeout(120), inside(config) as (client, server):
            task_id = (await client.post("/task", json={"params_type": "generate", "model": "plain"})).json()
            server.hang_up()
            assert (await client.get(f"/task/{task_id}/events")).status_code == 200  # and the answer has an end

    asyncio.run(run())


def test_what_is_refused_costs_no_quota(tmp_path: Path) -> None:
    """Neither what only the database knows to be wrong, nor what only a long look at a file does."""
    limit = {"limit": {"rate": {"enabled": True, "max_request": 3}}, "engine": {"linger": 0.1}}
    with serve(write(tmp_path, server=limit, store={"history": True})) as server:

        def left(answer: httpx.Response) -> int:
            assert answer.is_success, answer.text
            return int(answer.headers["ratelimit"].split(";r=")[1].split(";")[0])

        key = {"Idempotency-Key": "one"}
        assert left(post(server, {"params_type": "generate", "model": "plain", "seed": 1}, **key)) == 2
        for _ in range(4):
            assert post(server, {"params_type": "generate", "model": "plain", "seed": 2}, **key).status_code == 409
            assert server.client.post("/images/import", content=encode(), headers={"Content-Type": "image/png"}).status_code == 422
        assert left(server.client.post("/plain/generate")) == 1

"""Disks without room: of the database and the blobs, of tmp_dir, of /tmp. Real ones, small enough to be filled."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.faults import Watch, empty, fill, proper, small_disk, wait_for
from tests.serving import Running, serve
from tests.test_tasks import create, events, write

CONCURRENCY = {"enabled": True, "max_concurrency": 1, "max_queue": 4, "timeout": 30.0}
LIMIT = {"concurrency": CONCURRENCY, "rate": {"enabled": True, "max_request": 9999}}
LEASE = 1.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Each of what it writes has a small disk of its own: data, blobs, run (tmp_dir) and tmp (the system's)."""
    folder = tmp_path_factory.mktemp("disks")
    with contextlib.ExitStack() as disks:
        for name in ("data", "blobs", "run", "tmp"):
            disks.enter_context(small_disk(folder / name, 12))
        patch = disks.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("TMPDIR", str(folder / "tmp"))
        kept = {"store": {"history": True}, "blobs": {"url": str(folder / "blobs")}, "tasks": {"lease": LEASE}}
        with serve(write(folder, server={"limit": LIMIT}, **kept)) as running:
            yield running


def generate(server: Running) -> httpx.Response:
    return server.client.post("/plain/generate?seed=1")


def picture(size: int) -> bytes:
    """A PNG that cannot be made smaller."""
    pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=0)
    return file.getvalue()


def upload(server: Running, data: bytes, form: bool = False) -> httpx.Response:
    if form:
        return server.client.post("/blob", files={"file": ("x.png", data, "image/png")})
    return server.client.post("/blob", content=data, headers={"Content-Type": "image/png"})


def check_store(folder: Path) -> None:
    """Every row has its bytes, whole; nothing is left of what was not finished."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/data/store.sqlite?mode=ro", uri=True)) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = base.execute("SELECT id, size, sha256 FROM blobs").fetchall()
    for blob_id, size, digest in rows:
        data = (folder / "blobs" / blob_id[0] / blob_id[1:3] / blob_id).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    assert list((folder / "blobs" / "parts").iterdir()) == []


def check_recovery(server: Running, what: str) -> None:
    watch = Watch()
    wait_for(lambda: generate(server).status_code == 200, "pictures are made again")
    watch.tell(what)
    first, second = generate(server), generate(server)
    assert (first.status_code, second.status_code) == (200, 200), "the only place was not given back"


def proper_all(answers: list[httpx.Response]) -> None:
    improper = [(answer.request.url.path, answer.status_code, answer.text[:200]) for answer in answers if not proper(answer)]
    assert not improper, improper
    told = [answer.json()["detail"] for answer in answers if answer.status_code == 503]
    assert all("unavailable" in text for text in told), told


@pytest.mark.parametrize("disk", ["data", "blobs"])
@pytest.mark.parametrize("leave", [0, 20_000, 60_000])
def test_no_room_for_what_is_kept(server: Running, disk: str, leave: int) -> None:
    """``leave``: no room; enough for a row or a small picture; enough for some."""
    ended = create(server, seed=2)
    events(server, ended)
    fill(server.folder / disk, leave)
    try:
        answers = [generate(server) for _ in range(4)] + [upload(server, picture(400)), upload(server, picture(400))]
        tasks = [server.client.post("/task", json={"params_type": "generate", "seed": seed}) for seed in range(4)]
        answers += [*tasks, server.client.get("/plain/image?seed=5")]
        proper_all(answers)
        assert leave > 20_000 or {answer.status_code for answer in answers} >= {503}
        assert [server.client.get(path).status_code for path in ("/images", f"/task/{ended}")] == [200, 200], "what is stored can be read"
        time.sleep(2 * LEASE if leave == 0 else 0)  # a task that is at work meanwhile must not be given up
    finally:
        empty(server.folder / disk)
    check_recovery(server, f"the disk of the {disk} was full but for {leave} bytes")
    accepted = [answer.json() for answer in tasks if answer.status_code == 201]
    assert len(accepted) == 4 or disk == "data"
    watch = Watch()
    for task_id in accepted:
        kinds = [kind for _, kind, _ in events(server, task_id)]
        assert (kinds.count("finished"), kinds[-1]) == (1, "finished")
    watch.tell(f"{len(accepted)} tasks that waited for room are finished")
    check_store(server.folder)


def test_a_full_tmp_dir(server: Running) -> None:
    """Limits and numbers lie there: what needs them is refused, and no place stays taken."""
    run = server.folder / "run"
    fill(run)
    try:
        answers = [generate(server) for _ in range(8)]
        answers += [server.client.get(path) for path in ("/metrics", "/readyz", "/models/", "/healthz")]
        improper = [(answer.request.url.path, answer.status_code, answer.text[:200]) for answer in answers if not proper(answer)]
        assert not improper, improper
    finally:
        empty(run)
    check_recovery(server, "tmp_dir was full")
    assert server.client.get("/metrics").status_code == 200


def test_a_full_tmp(server: Running) -> None:
    """Large files of forms lie there meanwhile."""
    data = picture(700)
    assert upload(server, data, form=True).status_code == 201
    fill(server.folder / "tmp")
    try:
        refused = upload(server, data, form=True)
        assert (refused.status_code, proper(refused)) == (503, True)
        assert generate(server).status_code == 200
        assert upload(server, data).status_code == 201
    finally:
        empty(server.folder / "tmp")
    assert upload(server, data, form=True).status_code == 201

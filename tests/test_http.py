"""The HTTP interface on real servers with tiny models."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import tiny_precure
from tests.faults import wait_for
from tests.serving import Running, inside, serve, write_config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("http")
    tiny_precure(folder / "plain.safetensors", levels=3)
    tiny_precure(folder / "classes.safetensors", categories=3, levels=4, seed=1)
    models = {
        "plain": {"file": "plain.safetensors", "relative": True, "name": "Plain", "description": "no classes"},
        "classes": {"file": "classes.safetensors", "relative": True, "lossy": True},
    }
    config = write_config(folder, models, {"http": {"max_body": 65536, "cors": {"enabled": True, "origins": ["https://example.org"]}}})
    with serve(config) as running:
        yield running


def npy(array: Any) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def unpack(text: str) -> Any:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def picture(text: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def info(server: Running, model_id: str) -> dict[str, Any]:
    return next(model for model in server.client.get("/models/").json() if model["id"] == model_id)


def test_root_and_version(server: Running) -> None:
    assert server.client.get("/").json() == "Hello"
    assert server.client.get("/version").json() == "1.0.0"
    page = server.client.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.status_code == 307
    assert server.client.get(page.headers["location"]).headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/", {"Accept": "text/html"}, 307),
        ("/healthz", {}, 200),
        ("/readyz", {}, 200),
        ("/version", {"Origin": "https://example.org"}, 200),
        ("/plain/image?seed=1", {}, 200),
        ("/plain/image?seed=1", {"If-None-Match": "*"}, 304),
        ("/plain/image?seed=1", {"X-Session": "one"}, 200),
        ("/plain/image?seed=x", {}, 422),
        ("/nobody/image?seed=1", {}, 404),
    ],
)
def test_head_is_get_without_a_body(server: Running, path: str, headers: dict[str, str], status: int) -> None:
    get, head = (server.client.request(method, path, headers=headers, follow_redirects=False) for method in ("GET", "HEAD"))
    assert (get.status_code, head.status_code, head.content) == (status, status, b"")
    own = {"date", "x-request-id"}
    assert {name: value for name, value in head.headers.items() if name not in own} == {
        name: value for name, value in get.headers.items() if name not in own
    }
    assert server.client.get("/healthz").json() == "ok"  # the connection goes on


def test_heads_are_logged_as_such_and_not_described(server: Running) -> None:
    server.client.head("/plain/image?seed=1", headers={"X-Request-Id": "a-head"})
    wait_for(lambda: "a-head" in server.log.read_text(), "the request is logged")
    (line,) = (line for line in server.log.read_text().splitlines() if "a-head" in line)
    assert "HEAD /plain/image" in line
    assert not any("head" in path for path in server.client.get("/openapi.json").json()["paths"].values())
    assert server.client.head("/models/").status_code == 405


def test_models_are_told_with_an_example(server: Running) -> None:
    plain, classes = server.client.get("/models/").json()
    original = ["id", "name", "description", "conditional", "labels", "width", "height", "lossy", "mimeType", "example"]
    assert list(plain)[: len(original)] == original
    assert plain["labels"] is None
    assert not plain["conditional"]
    assert classes["conditional"]
    assert len(classes["labels"]) == 3
    assert classes["mimeType"] == "image/jpeg"
    assert picture(plain["example"]).shape == (plain["height"], plain["width"], 3)


def test_generate_answers_what_the_original_did(server: Running) -> None:
    answer = server.client.post("/plain/generate")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert list(body)[:8] == ["model", "width", "height", "mimeType", "data", "style", "label", "latent"]
    assert picture(body["data"]).shape == (body["height"], body["width"], 3)
    told = info(server, "plain")
    assert unpack(body["style"]).shape == (told["styleSize"],)
    assert unpack(body["latent"]).shape == (told["latentSize"],)
    assert unpack(body["latent"]).dtype == np.float32


def test_the_seed_repeats_a_picture_and_latents_are_nvidias(server: Running) -> None:
    first, second = (server.client.post("/plain/generate", params={"seed": 5}).json() for _ in range(2))
    assert first == second
    assert first["seed"] == 5
    expected = np.random.RandomState(5).randn(1, len(unpack(first["latent"]))).astype(np.float32)[0]
    assert np.array_equal(unpack(first["latent"]), expected)


def test_count_makes_several_pictures_with_following_seeds(server: Running) -> None:
    body = server.client.post("/plain/generate", params={"seed": 2**32 - 2, "count": 3}).json()
    pictures = [body, *body["more"]]
    assert [item["seed"] for item in pictures] == [2**32 - 2, 2**32 - 1, 0]
    alone = server.client.post("/plain/generate", params={"seed": 0}).json()
    assert alone["data"] == pictures[2]["data"]


def test_latent_is_the_centre_and_sd_zero_renders_it(server: Running) -> None:
    first = server.client.post("/plain/generate", params={"seed": 5, "noise": "none"}).json()
    again = server.client.post("/plain/generate", params={"sd": 0, "noise": "none"}, json={"latent": first["latent"]}).json()
    assert np.array_equal(picture(again["data"]), picture(first["data"]))
    assert again["latent"] == first["latent"]


def test_labels(server: Running) -> None:
    labels = info(server, "classes")["labels"]
    body = server.client.post("/classes/generate", params={"label": labels[1], "seed": 3}).json()
    assert body["label"] == labels[1]
    assert server.client.post("/classes/generate", params={"seed": 3}).json()["label"] in labels


def test_blend_and_mix(server: Running) -> None:
    levels = info(server, "plain")["levels"]
    one, two = (server.client.post("/plain/generate", params={"seed": seed, "noise": "none"}).json() for seed in (1, 2))
    same = server.client.post("/plain/blend", params={"noise": "none"}, json={"styles": [one["style"]]}).json()
    assert np.array_equal(picture(same["data"]), picture(one["data"]))
    assert list(same)[:6] == ["model", "width", "height", "mimeType", "data", "style"]
    both = server.client.post("/plain/blend", params={"weights": [1, 3]}, json={"styles": [one["style"], two["style"]]}).json()
    assert np.allclose(unpack(both["style"]), (unpack(one["style"]) + 3 * unpack(two["style"])) / 4, atol=1e-6)
    mixed = server.client.post("/plain/mix", json={"styles": [one["style"], two["style"]]}).json()
    assert len(mixed["styles"]) == levels
    assert [style == one["style"] for style in mixed["styles"]] == [level * 2 // levels == 0 for level in range(levels)]
    rows = {"levels": [1] + [0] * (levels - 1)}
    chosen = server.client.post("/plain/mix", params=rows, json={"styles": [one["style"], two["style"]]}).json()
    assert chosen["styles"] == [two["style"]] + [one["style"]] * (levels - 1)


def test_image_is_cacheable_for_ever(server: Running) -> None:
    first = server.client.get("/plain/image", params={"seed": 5})
    assert first.headers["content-type"] == "image/png"
    assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert first.headers["x-seed"] == "5"
    tag = first.headers["etag"]
    for more in ({}, {"count": 1}):
        assert server.client.get("/plain/image", params={"seed": 5, **more}).content == first.content
    assert server.client.get("/plain/image", params={"seed": 5, "count": 2}).status_code == 422
    assert server.client.get("/plain/image", params={"seed": 6}).headers["etag"] != tag
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = server.client.get("/plain/image", params={"seed": 5}, headers={"If-None-Match": known})
        assert again.status_code == 304
        assert not again.content
    drawn = server.client.get("/plain/image", params={"psi": 0.5})
    assert drawn.status_code == 307
    assert "psi=0.5" in drawn.headers["location"]
    assert server.client.get(drawn.headers["location"]).status_code == 200


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "avif"])
def test_pictures_by_accept_header(server: Running, kind: str) -> None:
    answer = server.client.post("/plain/generate", params={"seed": 1}, headers={"Accept": f"image/{kind}"})
    assert answer.headers["content-type"] == f"image/{kind}"
    opened = Image.open(io.BytesIO(answer.content))
    assert opened.format == kind.upper()
    assert opened.size == (info(server, "plain")["width"], info(server, "plain")["height"])
    assert "Accept" in answer.headers["vary"]
    if kind == "png":
        assert "Seed: 1" in opened.text["parameters"]  # type: ignore[attr-defined]
        assert answer.content == server.client.get("/plain/image", params={"seed": 1, "format": "png"}).content


def test_what_cannot_be_accepted(server: Running) -> None:
    assert server.client.post("/plain/generate", headers={"Accept": "video/mp4"}).status_code == 406
    assert server.client.post("/plain/generate", params={"count": 2}, headers={"Accept": "image/png"}).status_code == 422


@pytest.mark.parametrize(
    ("accepted", "kind"),
    [("image/png;q=nan", "application/json"), ("application/json;q=nan, image/png", "image/png"), ("image/png, */*;q=nan", "image/png")],
)
def test_weights_that_are_no_numbers_are_passed_over(server: Running, accepted: str, kind: str) -> None:
    answer = server.client.post("/plain/generate", headers={"Accept": accepted})
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)


@pytest.mark.parametrize(
    ("path", "query", "body", "status", "detail"),
    [
        ("/other/generate", {}, None, 404, {"type": "model", "name": "other", "msg": "no such model"}),
        ("/plain/generate", {"label": "x"}, None, 404, {"type": "label", "name": "x", "msg": "no such label"}),
        ("/classes/generate", {"label": "x"}, None, 404, {"type": "label", "name": "x", "msg": "no such label"}),
        ("/plain/generate", {}, {"latent": "AAAA"}, 415, None),
        ("/plain/generate", {}, {"latent": "%%%"}, 415, None),
        ("/plain/generate", {}, {"latent": npy(np.zeros(3, np.float32))}, 422, "invalid array"),
        ("/plain/blend", {}, {"styles": [npy(np.zeros(8, np.float64))]}, 422, "invalid array"),
        ("/plain/blend", {}, {"styles": []}, 422, None),
        ("/plain/generate", {"label": ""}, None, 422, None),
        ("/plain/generate", {"psi": 0}, None, 422, None),
        ("/plain/generate", {"psi": 2.1}, None, 422, None),
        ("/plain/generate", {"psi": "nan"}, None, 422, None),
        ("/plain/generate", {"sd": -0.1}, None, 422, None),
        ("/plain/generate", {"seed": 2**32}, None, 422, None),
        ("/plain/generate", {"noise": "loud"}, None, 422, None),
        ("/plain/generate", {"count": 17}, None, 422, None),
    ],
)
def test_bad_input_is_refused_by_name(server: Running, path: str, query: dict[str, Any], body: Any, status: int, detail: Any) -> None:
    answer = server.client.post(path, params=query, json=body) if body else server.client.post(path, params=query)
    assert answer.status_code == status, answer.text
    if detail is not None:
        assert answer.json() == {"detail": detail}


def test_mix_refuses_more_styles_than_levels(server: Running) -> None:
    told = info(server, "plain")
    style = npy(np.zeros(told["styleSize"], np.float32))
    answer = server.client.post("/plain/mix", json={"styles": [style] * (told["levels"] + 1)})
    assert answer.status_code == 422


def test_nan_becomes_zero_and_values_are_clipped(server: Running) -> None:
    size = info(server, "plain")["latentSize"]
    wild = np.full(size, np.nan, np.float32)
    wild[1], wild[2] = np.inf, -1e9
    body = server.client.post("/plain/generate", params={"sd": 0}, json={"latent": npy(wild)}).json()
    assert unpack(body["latent"])[:3].tolist() == [0.0, 100.0, -100.0]


def test_large_bodies_are_refused(server: Running) -> None:
    answer = server.client.post("/plain/generate", content=b"x" * 100_000)
    assert answer.status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    assert server.client.post("/plain/generate", content=endless()).status_code == 413


def test_an_array_that_promises_terabytes(server: Running) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2500000000000,), }"
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    answer = server.client.post("/plain/generate", json={"latent": base64.b64encode(body).decode()})
    assert answer.status_code in (415, 422)


def test_cross_origin(server: Running) -> None:
    headers = {"Origin": "https://example.org"}
    assert server.client.get("/models/", headers=headers).headers["access-control-allow-origin"] == "https://example.org"
    asked = {**headers, "Access-Control-Request-Method": "POST"}
    assert server.client.options("/plain/generate", headers=asked).status_code == 200
    assert "access-control-allow-origin" not in server.client.get("/models/", headers={"Origin": "https://evil.example"}).headers


def test_operations(server: Running) -> None:
    assert server.client.get("/healthz").json() == "ok"
    assert server.client.get("/readyz").json() == {"status": "ready", "models": {"plain": "ready", "classes": "ready"}}
    server.client.post("/plain/generate")
    text = server.client.get("/metrics").text
    assert 'stylegan_requests_total{method="POST",route="/{model_id}/generate",status="200"}' in text
    assert "stylegan_resident_bytes" in text


PICTURES = "stylegan_pictures_total"
GENERATED = 'stylegan_requests_total{method="POST",route="/{model_id}/generate"'


def count_of(server: Running, start: str) -> float:
    """The sum of a metric over its labels."""
    text = server.client.get("/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(start))


def pictures_made(server: Running) -> float:
    """Until now, and one more. The engine tells of them twice a second; when it tells of one, it tells of all before."""
    known = count_of(server, PICTURES)
    assert server.client.post("/plain/generate").status_code == 200
    wait_for(lambda: count_of(server, PICTURES) > known, "the engine tells what it made")
    return count_of(server, PICTURES)


def test_jobs_of_300_clients_that_leave_never_run(server: Running) -> None:
    before, requests = pictures_made(server), count_of(server, GENERATED)
    with server.frozen():  # nothing can be computed while they come and go
        leaving = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
        for connection in leaving:
            connection.sendall(b"POST /plain/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            connection.close()
        wait_for(lambda: count_of(server, GENERATED) == requests + 300, "they have left")
    pictures_made(server)  # which comes behind all of theirs
    # Some may have been begun before the engine read that their clients had left; tests/test_engine.py counts exactly.
    assert pictures_made(server) - before <= 100


def test_a_killed_engine_is_counted_and_not_noticed(server: Running) -> None:
    before = server.client.get("/plain/image", params={"seed": 8}).content
    restarts = count_of(server, "stylegan_engine_restarts_total")
    for pid in server.engines():
        os.kill(pid, signal.SIGKILL)
    assert server.client.get("/plain/image", params={"seed": 8}).content == before
    server.wait_ready()
    wait_for(lambda: count_of(server, "stylegan_engine_restarts_total") == restarts + 1, "it is counted")


def test_request_ids(server: Running) -> None:
    assert server.client.get("/healthz", headers={"X-Request-ID": "mine-7"}).headers["x-request-id"] == "mine-7"
    odd = server.client.get("/healthz", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"]
    assert odd != "a b\tc"
    wait_for(lambda: odd in server.log.read_text(), "it is in the log")  # which is written when the answer has gone


def test_openapi_keeps_the_originals_names(server: Running) -> None:
    spec = server.client.get("/openapi.json").json()
    operations = {route["operationId"]: path for path, methods in spec["paths"].items() for route in methods.values()}
    assert operations["generate"] == "/{model_id}/generate"
    assert {"root", "version", "models", "generate", "blend", "mix", "image"} <= set(operations)
    schemas = spec["components"]["schemas"]
    assert {"Model", "SimplePureImage", "SimpleImage", "CompoundImage", "GenerateRequestBody", "ReconstructionRequestBody"} <= set(schemas)
    assert {"404", "406", "413", "415", "422", "429", "502", "503"} <= set(spec["paths"]["/{model_id}/generate"]["post"]["responses"])


def test_failures_that_nobody_expected_are_told_by_the_request_s_id(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True, "warmup": False}}

    async def fail() -> None:
        raise ZeroDivisionError

    async def run() -> None:
        async with inside(write_config(tmp_path, models, {"engine": {"linger": 0.2}}), routes={"/fail": fail}) as (client, _):
            answer = await client.get("/fail")
            assert answer.status_code == 500
            assert answer.json() == {"detail": f"internal error {answer.headers['x-request-id']}"}

    asyncio.run(run())


def test_a_model_is_waited_for_only_as_long_as_a_request_may_take(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    config = write_config(tmp_path, models, {"engine": {"deadline": 0.05, "linger": 0.2}})

    async def run() -> None:
        async with asyncio.timeout(120), inside(config) as (client, _):
            answer = await client.post("/plain/generate")  # whose engine has not even begun to load
            assert (answer.status_code, answer.json()) == (503, {"detail": "the model is loading"})
            assert answer.headers["retry-after"] == "5"

    asyncio.run(run())

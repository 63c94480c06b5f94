"""Every architecture in every mode by every route, through one real server: whichever way is taken, the same picture."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving import Running, serve, write_config
from tests.tiny_pipelines import BUILDERS, save

SIDE = 64
QUICK: dict[str, Any] = {"prompt": "a red face", "steps": 2, "seed": 5, "width": SIDE, "height": SIDE}
MODES = ("txt2img", "img2img", "inpaint")
JSON_ROUTES = {"txt2img": "/text2img/", "img2img": "/img2img/", "inpaint": "/inpainting/"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("routes")
    models = {name: {"file": str(save(name, folder)), "warmup": False} for name in BUILDERS}
    with serve(write_config(folder, models, server={"engine": {"threads": 1}})) as running:
        yield running


@pytest.fixture(scope="module")
def blobs(server: Running) -> dict[str, str]:
    return {
        name: server.client.post("/blob", content=data, headers={"Content-Type": "image/png"}).json()
        for name, data in (("initial_image", NOISE), ("mask", MASK))
    }


def png(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


NOISE = png(np.random.default_rng(3).integers(0, 255, (SIDE, SIDE, 3), np.uint8))
HALF = np.zeros((SIDE, SIDE), np.uint8)
HALF[:, : SIDE // 2] = 255
MASK = png(HALF)
ALPHA = png(np.dstack([np.zeros((SIDE, SIDE, 3), np.uint8), 255 - HALF]))  # where it is transparent, it is repainted


def body(model: str, mode: str) -> dict[str, Any]:
    given: dict[str, Any] = QUICK | {"model": model}
    if mode != "txt2img":
        given |= {"image": base64.b64encode(NOISE).decode(), "strength": 0.9}
    if mode == "inpaint":
        given |= {"mask_image": base64.b64encode(MASK).decode()}
    return given


def references(mode: str, blobs: dict[str, str]) -> dict[str, Any]:
    if mode == "txt2img":
        return {}
    names = ("initial_image",) if mode == "img2img" else ("initial_image", "mask")
    return {"strength": 0.9, **{name: blobs[name] for name in names}}


def can(server: Running, model: str) -> list[str]:
    extra = next(entry for entry in server.client.get("/models/").json() if entry["id"] == model)["extra"]
    modes: list[str] = extra["modes"]
    return modes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", BUILDERS)
def test_all_routes_agree(server: Running, blobs: dict[str, str], model: str, mode: str) -> None:
    answer = server.client.post(JSON_ROUTES[mode], json=body(model, mode))
    if mode not in can(server, model):
        assert answer.status_code == 422
        assert mode in answer.text or "cannot" in answer.text
        return
    assert answer.status_code == 200, answer.text
    picture = base64.b64decode(answer.json()["images"][0])
    assert Image.open(io.BytesIO(picture)).size == (SIDE, SIDE)
    guidance = {"cfg_scale": answer.json()["parameters"]["cfg_scale"]}
    shown = server.client.get(f"/{mode}", params=QUICK | {"model": model} | guidance | references(mode, blobs))
    assert shown.content == picture, shown.text[:200]
    assert task(server, {"params_type": mode, "model": model, **QUICK, **references(mode, blobs)}) == picture
    assert openai(server, model, mode) == picture


def task(server: Running, params: dict[str, Any]) -> bytes:
    answer = server.client.post("/task", json=params)
    assert answer.status_code == 201, answer.text
    with server.client.stream("GET", f"/task/{answer.json()}/events") as stream:
        *_, last = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
    assert last["event_type"] == "finished", last
    return server.client.get(f"/blob/{last['image']['blob_id']}").content


def openai(server: Running, model: str, mode: str) -> bytes:
    fields = {"model": model, "prompt": QUICK["prompt"], "steps": 2, "seed": 5, "size": f"{SIDE}x{SIDE}"}
    if mode == "txt2img":
        answer = server.client.post("/v1/images/generations", json=fields)
    else:
        files = {"image": ("image.png", NOISE, "image/png")} | ({"mask": ("mask.png", ALPHA, "image/png")} if mode == "inpaint" else {})
        answer = server.client.post("/v1/images/edits", data=fields | {"strength": 0.9}, files=files)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])

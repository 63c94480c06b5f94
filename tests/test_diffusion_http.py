"""The diffusion routes on a real server with tiny random pipelines."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from api.engine.codec import parse_recipe
from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config
from tests.tiny_pipelines import save

SIZE: dict[str, Any] = {"width": 64, "height": 64}
QUICK: dict[str, Any] = {"prompt": "a red face", "steps": 3, "seed": 5, **SIZE}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("diffusion")
    tiny_precure(folder / "plain.safetensors", levels=3)
    models = {
        "plain": {"file": "plain.safetensors", "relative": True},
        "words": {"file": str(save("sd", folder)), "description": "a face"},
        "turbo": {"file": str(save("lcm", folder)), "diffusion": {"steps": 2, "max_steps": 8}, "warmup": False},
    }
    config = write_config(folder, models, blobs={"max_pixels": 100_000}, server={"http": {"max_body": 2_000_000}, "engine": {"threads": 1}})
    with serve(config) as running:
        yield running


def encode(array: Any, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pixels(data: bytes | str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data)).convert("RGB"))


def noise(size: tuple[int, int] = (64, 64), seed: int = 3) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)


LEFT = np.zeros((64, 64), np.uint8)
LEFT[:, :32] = 255
BODIES: dict[str, dict[str, Any]] = {
    "text2img": QUICK,
    "img2img": QUICK | {"image": text(encode(noise())), "strength": 0.8},
    "inpainting": QUICK | {"image": text(encode(noise())), "mask_image": text(encode(LEFT)), "strength": 1.0},
}


@pytest.mark.parametrize("name", BODIES)
def test_a_picture_is_the_same_each_time_and_at_both_addresses(server: Running, name: str) -> None:
    first, second = (server.client.post(path, json=BODIES[name]) for path in (f"/{name}/", f"/{name}"))
    assert first.status_code == 200, first.text
    assert first.json() == second.json()
    (image,), used = first.json()["images"], first.json()["parameters"]
    assert pixels(image).shape == (64, 64, 3)
    assert (used["seed"], used["steps"], used["cfg_scale"], used["model"]) == (5, 3, 7, "words")
    assert used["prompt"] == "a red face"
    assert used["scheduler"] in told(server)["schedulers"]


def told(server: Running, model: str = "words") -> dict[str, Any]:
    extra: dict[str, Any] = next(entry for entry in server.client.get("/models/").json() if entry["id"] == model)["extra"]
    return extra


def test_several_pictures_count_their_seeds_up(server: Running) -> None:
    many = server.client.post("/text2img/", json=QUICK | {"number_of_images": 3}).json()
    assert many["parameters"]["seeds"] == [5, 6, 7]
    for seed, image in zip((5, 6, 7), many["images"], strict=True):
        assert server.client.post("/text2img/", json=QUICK | {"seed": seed}).json()["images"] == [image]


def test_what_was_not_given_is_told(server: Running) -> None:
    used = server.client.post("/text2img/", json={"prompt": "x", "steps": 1}).json()["parameters"]
    assert 0 <= used["seed"] < 2**32
    info = next(entry for entry in server.client.get("/models/").json() if entry["id"] == "words")
    assert (used["width"], used["height"]) == (info["width"], info["height"])
    used = server.client.post("/text2img/", json={"prompt": "x", "model": "turbo"}).json()["parameters"]
    assert used["steps"] == 2


def test_other_names_and_data_prefixes_are_understood(server: Running) -> None:
    body = BODIES["img2img"] | {"guidance": 3.0, "image": "data:image/png;base64," + BODIES["img2img"]["image"]}
    assert server.client.post("/img2img/", json=body).json()["parameters"]["cfg_scale"] == 3.0


def test_a_mask_protects_what_is_black(server: Running) -> None:
    empty = BODIES["inpainting"] | {"mask_image": text(encode(LEFT * 0))}
    made = [pixels(server.client.post("/inpainting/", json=body).json()["images"][0]) for body in (BODIES["inpainting"], empty)]
    assert (made[0] != made[1])[:, :32].any()
    assert np.array_equal(made[1], noise())


def test_orientation_counts(server: Running) -> None:
    picture = Image.fromarray(noise((48, 64)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(np.asarray(picture), exif=exif)
    upright = encode(np.asarray(picture.transpose(Image.Transpose.ROTATE_270)))
    bodies = [{"prompt": "x", "steps": 2, "seed": 1, "strength": 0.5, "image": text(data)} for data in (turned, upright)]
    first, second = (server.client.post("/img2img/", json=body).json() for body in bodies)
    assert first == second


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        ("text2img", {"prompt": "x" * 301}, "prompt"),
        ("text2img", {"prompt": None}, "prompt"),
        ("text2img", {"negative_prompt": "x" * 301}, "negative_prompt"),
        ("text2img", {"prompt": "x" * 1_000_000}, "prompt"),
        ("text2img", {"cfg_scale": 21}, "cfg_scale"),
        ("text2img", {"cfg_scale": -1}, "cfg_scale"),
        ("text2img", {"steps": 0}, "steps"),
        ("text2img", {"steps": 151}, "steps"),
        ("text2img", {"steps": 9, "model": "turbo"}, None),
        ("text2img", {"number_of_images": 9}, "number_of_images"),
        ("text2img", {"width": 65}, "width"),
        ("text2img", {"width": 8192}, None),
        ("text2img", {"seed": 2**32}, "seed"),
        ("text2img", {"scheduler": "none"}, None),
        ("text2img", {"model": "plain"}, None),
        ("text2img", {"safe": True}, None),
        ("img2img", {"strength": 0}, "strength"),
        ("img2img", {"strength": 1.1}, "strength"),
        ("img2img", {"image": "%%%"}, "image"),
        ("img2img", {"image": text(b"GIF89a")}, "image"),
        ("img2img", {"image": BODIES["img2img"]["image"][:400]}, "image"),
        ("inpainting", {"mask_image": text(encode(np.zeros((32, 64), np.uint8)))}, None),
        ("inpainting", {"mask_image": None}, "mask_image"),
    ],
)
def test_what_is_wrong_is_told_in_fastapis_form(server: Running, name: str, change: dict[str, Any], place: str | None) -> None:
    answer = server.client.post(f"/{name}/", json=BODIES[name] | change)
    assert answer.status_code == 422, answer.text
    (fault,) = answer.json()["detail"]
    assert fault["loc"] == (["body"] if place is None else ["body", place])
    assert fault["msg"]


def test_bombs_and_unknown_models_are_refused(server: Running) -> None:
    bomb = text(encode(np.zeros((3000, 3000), np.uint8)))
    assert server.client.post("/img2img/", json=BODIES["img2img"] | {"image": bomb}).status_code == 413
    assert server.client.post("/text2img/", json=QUICK | {"model": "nobody"}).status_code == 404
    assert server.client.post("/text2img/", content=b"x" * 3_000_000).status_code == 413


def test_openapi_states_the_bounds(server: Running) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["Text2Img"]["properties"]["prompt"]["maxLength"] == 300
    assert schemas["Text2ImgTask"]["properties"]["prompt"]["maxLength"] == 300
    assert json.dumps(schemas["Text2Img"]["properties"]["steps"]).count("150") == 1


# By query string.


def test_a_browser_gets_the_picture_itself(server: Running) -> None:
    answer = server.client.get("/txt2img", params=QUICK, headers={"Accept": "image/avif,image/webp,image/apng,image/*,*/*;q=0.8"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == base64.b64decode(server.client.post("/text2img", json=QUICK).json()["images"][0])
    written = Image.open(io.BytesIO(answer.content)).text["parameters"]  # type: ignore[attr-defined]
    recipe = parse_recipe(written)
    assert recipe["Prompt"] == "a red face"
    assert {"Steps": 3, "Seed": 5, "Size": "64x64", "CFG scale": 7.0, "Model": "words"}.items() <= recipe.items()
    assert server.client.get("/txt2img", params=QUICK, headers={"Accept": "application/json"}).json()["parameters"]["seed"] == 5
    assert server.client.get("/txt2img", params=QUICK | {"format": "webp"}).headers["content-type"] == "image/webp"
    assert server.client.get("/txt2img", params=QUICK, headers={"Accept": "text/csv"}).status_code == 406
    assert server.client.get("/txt2img", params=QUICK | {"number_of_images": 2}).status_code == 422
    assert server.client.get("/txt2img").status_code == 422


@pytest.mark.parametrize(
    ("path", "change", "place"),
    [
        ("txt2img", {"prompt": "x" * 301}, "prompt"),
        ("txt2img", {"negative_prompt": "x" * 301}, "negative_prompt"),
        ("txt2img", {"number_of_images": 2}, "number_of_images"),
        ("txt2img", {"steps": 151}, "steps"),
        ("txt2img", {"steps": 9, "model": "turbo"}, None),
        ("txt2img", {"scheduler": "none"}, None),
        ("txt2img", {"model": "plain"}, None),
        ("img2img", {"prompt": "x" * 301}, "prompt"),
        ("img2img", {"width": 8192}, None),
        ("inpaint", {"prompt": "x" * 301}, "prompt"),
        ("inpaint", {"safe": True}, None),
    ],
)
def test_what_is_wrong_with_a_query_is_told_as_the_query_s(server: Running, path: str, change: dict[str, Any], place: str | None) -> None:
    pictures = {} if path == "txt2img" else {"initial_image": upload(server, encode(noise()))}
    pictures |= {"mask": upload(server, encode(LEFT))} if path == "inpaint" else {}
    answer = server.client.get(f"/{path}", params=QUICK | pictures | change)
    assert answer.status_code == 422, answer.text
    (fault,) = answer.json()["detail"]
    assert fault["loc"] == (["query"] if place is None else ["query", place])
    assert fault["msg"]


def upload(server: Running, data: bytes) -> str:
    blob_id: str = server.client.post("/blob", content=data).json()
    return blob_id


def test_pictures_are_given_as_blobs(server: Running) -> None:
    image, mask = upload(server, encode(noise())), upload(server, encode(LEFT))
    query = QUICK | {"initial_image": image, "strength": 0.8}
    direct = server.client.post("/img2img", json=BODIES["img2img"]).json()["images"][0]
    assert server.client.get("/img2img", params=query).content == base64.b64decode(direct)
    direct = server.client.post("/inpainting", json=BODIES["inpainting"]).json()["images"][0]
    answer = server.client.get("/inpaint", params=query | {"mask": mask, "strength": 1.0})
    assert answer.content == base64.b64decode(direct)
    assert server.client.get("/img2img", params=query | {"initial_image": "0" * 32}).status_code == 404


def test_leaving_cancels(server: Running) -> None:
    host, port = server.url[7:].split(":")
    time.sleep(1)  # the numbers of the engine come twice a second
    before = pictures_made(server)
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"GET /txt2img?prompt=x&steps=150&width=128&height=128 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        time.sleep(0.4)
    assert server.client.post("/text2img", json=QUICK | {"steps": 1}).status_code == 200
    end = time.monotonic() + 60
    while (made := pictures_made(server) - before) < 1:
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(1)
    assert (made, pictures_made(server) - before) == (1, 1)


def pictures_made(server: Running) -> float:
    text = server.client.get("/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith('stylegan_pictures_total{model="words"'))


# As tasks.


def events(server: Running, task_id: str) -> list[dict[str, Any]]:
    with server.client.stream("GET", f"/task/{task_id}/events") as answer:
        return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


TASKS: dict[str, str] = {"txt2img": "text2img", "img2img": "img2img", "inpaint": "inpainting"}


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_makes_the_same_picture_and_tells_its_steps(server: Running, kind: str) -> None:
    body = BODIES[TASKS[kind]]
    params = {name: value for name, value in body.items() if name not in ("image", "mask_image")} | {"params_type": kind, "previews": 1}
    if kind != "txt2img":
        params["initial_image"] = upload(server, encode(noise()))
    if kind == "inpaint":
        params["mask"] = upload(server, encode(LEFT))
    answer = server.client.post("/task", json=params)
    assert answer.status_code == 201, answer.text
    *before, last = events(server, answer.json())
    assert last["event_type"] == "finished", last
    assert last["image"]["parameters_used"].items() >= {"seed": 5, "steps": 3, "guidance_scale": 7.0}.items()
    made = server.client.get(f"/blob/{last['image']['blob_id']}").content
    assert made == base64.b64decode(server.client.post(f"/{TASKS[kind]}", json=body).json()["images"][0])
    steps = [event["step"] for event in before if event["event_type"] == "progress"]
    assert steps == sorted(steps)
    (shown,) = (event["preview"] for event in before if "preview" in event)
    assert pixels(shown.removeprefix("data:image/jpeg;base64,")).ndim == 3


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"prompt": "x" * 301}, 422),
        ({"scheduler": "none"}, 422),
        ({"width": 8192}, 422),
        ({"steps": 9, "model": "turbo"}, 422),
        ({"model": "plain"}, 422),
        ({"params_type": "img2img"}, 422),
        ({"params_type": "img2img", "initial_image": "0" * 32}, 404),
        ({"number_of_images": 2}, 201),
    ],
)
def test_what_a_task_cannot_be_is_told_at_once(server: Running, change: dict[str, Any], status: int) -> None:
    assert server.client.post("/task", json=QUICK | {"params_type": "txt2img"} | change).status_code == status


def test_a_running_task_is_cancelled_within_a_step(server: Running) -> None:
    params = {"params_type": "txt2img", "prompt": "x", "steps": 150, **SIZE}
    task_id = server.client.post("/task", json=params).json()
    while server.client.get(f"/task/{task_id}").json()["event_type"] != "progress":
        time.sleep(0.02)
    assert server.client.delete(f"/task/{task_id}").status_code == 204
    *_, before, last = events(server, task_id)
    assert last["event_type"] == "cancelled"
    assert before["step"] < 150


def test_a_large_picture_travels_as_small_as_it_is_used(server: Running) -> None:
    """On its way to the engine it would hold up all others."""
    (engine,) = server.engines()

    def read() -> int:
        return int(Path(f"/proc/{engine}/io").read_text().split()[1])

    before = read()
    photograph = text(encode(noise((310, 310)), "JPEG"))
    mask = text(encode(noise((310, 310), 4)[:, :, 0]))
    answer = server.client.post("/inpainting/", json=QUICK | {"image": photograph, "mask_image": mask, "steps": 1, "strength": 1.0})
    assert answer.status_code == 200, answer.text
    assert 64 * 64 * 4 <= read() - before < 310 * 310  # a quarter of the two; the engine reads other things, too

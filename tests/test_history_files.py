"""Kept pictures as files: exports, imports from hands that are not trusted, and diffusion with all that it starts from."""

from __future__ import annotations

import base64
import csv
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.history import found, get, make, write
from tests.serving import Running, serve
from tests.tiny_pipelines import save


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("files")
    with serve(write(folder, blobs={"max_pixels": 10_000, "max_size": 100_000})) as running:
        yield running


# Exports.


def unzip(data: bytes) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    return archive


def test_a_selection_as_a_zip(server: Running) -> None:
    ids, _ = make(server, "/classes/generate?seed=5&count=3", headers={"X-Session": "export"})
    server.client.patch(f"/images/{ids[0]}", json={"note": '=HYPERLINK("http://x")', "tags": ["one", "two"]})
    answer = server.client.post("/images/export", json={"ids": [ids[2], ids[0], ids[2]]})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    archive = unzip(answer.content)
    assert archive.namelist() == [f"images/{ids[2]}.png", f"images/{ids[0]}.png", "images.csv", "images.json"]
    described = json.loads(archive.read("images.json"))
    assert [entry["seed"] for entry in described] == [7, 5]
    assert described[1]["recipe"]["Model"] == "classes"
    assert (described[1]["note"], described[1]["tags"]) == ('=HYPERLINK("http://x")', ["one", "two"])
    rows = list(csv.DictReader(io.StringIO(archive.read("images.csv").decode())))
    assert [row["id"] for row in rows] == [ids[2], ids[0]]
    assert rows[1]["note"].startswith("'=")  # a table program shows it and does not compute it
    for entry in described:
        assert archive.read(entry["file"]) == server.client.get(f"/images/{entry['id']}/file").content


def test_a_search_as_a_zip(server: Running) -> None:
    ids, _ = make(server, "/plain/generate?count=4", headers={"X-Session": "search"})
    session = get(server, f"/images/{ids[0]}")["session"]
    for answer in (
        server.client.get("/images/export", params={"session": session}),
        server.client.post("/images/export", json={"search": {"session": session}}),
    ):
        assert [entry["id"] for entry in json.loads(unzip(answer.content).read("images.json"))] == ids[::-1]
    empty = server.client.get("/images/export", params={"session": "0" * 32})
    assert unzip(empty.content).namelist() == ["images.csv", "images.json"]


@pytest.mark.parametrize(
    ("body", "status"), [({"ids": []}, 422), ({"ids": ["x"]}, 404), ({"ids": ["0" * 32] * 1001}, 422), ({"id": []}, 422)]
)
def test_wrong_selections_are_refused(server: Running, body: Any, status: int) -> None:
    assert server.client.post("/images/export", json=body).status_code == status


# Imports.


def bring(server: Running, data: bytes, status: int = 201, **options: Any) -> Any:
    answer = server.client.post("/images/import", content=data, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize(
    "path",
    ["/classes/generate?seed=8&psi=0.4&label=cat2&cutoff=2&noise_seed=4", "/plain/generate?sd=0.5&noise=none", "/classes/edit"],
)
def test_a_picture_of_ours_comes_back_whole_and_can_be_made_again(server: Running, path: str) -> None:
    body = {"seed": 3, "directions": {"sefa-1": 1.25, "sefa-2": -1}, "layers": {"sefa-2": [1]}} if path.endswith("edit") else None
    (image_id,), _ = make(server, path, json=body)
    data = server.client.get(f"/images/{image_id}/file").content
    first = get(server, f"/images/{image_id}")
    told = bring(server, data, headers={"X-Session": "imports"})
    assert (told["kind"], told["model"], told["seed"], told["recipe"]) == ("import", first["model"], first["seed"], first["recipe"])
    assert server.client.get(told["file"]).content == data
    again = server.client.post(f"/images/{told['id']}/regenerate")
    assert (again.status_code, again.content) == (200, data)
    assert found(server, session=told["session"])[0] == told["id"]


def test_what_only_names_its_styles_is_kept_and_not_made_again(server: Running) -> None:
    style = server.client.post("/plain/generate").json()["style"]
    (image_id,), _ = make(server, "/plain/blend", json={"styles": [style]})
    data = server.client.get(f"/images/{image_id}/file").content
    told = server.client.post("/images/import", files={"file": ("x.png", data)}).json()
    assert told["job"] is None
    assert server.client.post(f"/images/{told['id']}/regenerate").status_code == 409


def png(parameters: str | None, size: tuple[int, int] = (8, 8), **texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    if parameters is not None:
        info.add_itxt("parameters", parameters)
    for key, value in texts.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 7, np.uint8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_nothing_of_a_file_is_kept_but_pixels_and_recipe(server: Running) -> None:
    data = png("Seed: 1, Model: elsewhere", Comment="<script>alert(1)</script>") + b"<?php trailing ?>"
    told = bring(server, data)
    assert (told["model"], told["job"]) == ("elsewhere", None)
    kept = server.client.get(told["file"])
    assert kept.headers["x-content-type-options"] == "nosniff"
    assert b"alert" not in kept.content
    assert b"php" not in kept.content
    assert np.asarray(Image.open(io.BytesIO(kept.content))).max() == 7


def test_a_recipe_that_lies_does_not_make_another_picture(server: Running) -> None:
    told = bring(server, png("Seed: 1, Model: plain, Size: 32x32, Psi: 1.0, SD: 1.0, Noise: random", size=(32, 32)))
    assert told["job"] is not None
    assert server.client.post(f"/images/{told['id']}/regenerate").status_code == 409


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def jpeg(parameters: str) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"UNICODE\0" + parameters.encode("utf-16-be")}
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def bomb() -> bytes:
    """A recipe of ten megabytes in ten kilobytes."""
    whole = png(None)
    text = b"parameters\0\0" + zlib.compress(b"Seed: 1, Model: plain, A: " + b"x" * 10_000_000, 9)
    return whole[:33] + chunk(b"zTXt", text) + whole[33:]


HOSTILE = {
    "nothing": (b"", 415),
    "text": (b"hello", 415),
    "a JPEG": (jpeg("Seed: 1, Model: plain"), 415),
    "truncated": (png("Seed: 1, Model: plain")[:90], 415),
    "no recipe": (png(None), 422),
    "another's recipe": (png("a cat\nSteps: 20, Sampler: Euler"), 422),
    "no seed": (png("Model: plain"), 422),
    "a negative seed": (png("Seed: -1, Model: plain"), 422),
    "a large seed": (png("Seed: 4294967296, Model: plain"), 422),
    "a seed in words": (png("Seed: one, Model: plain"), 422),
    "no model": (png("Seed: 1, Model: 5"), 422),
    "many pixels": (png("Seed: 1, Model: plain", size=(101, 100)), 413),
    "many bytes": (png("Seed: 1, Model: plain") + bytes(100_001), 413),
    "a long recipe": (png("Seed: 1, Model: plain, A: " + "x" * 70_000), 413),
    "a bomb": (bomb(), 413),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_ours_is_refused_and_leaves_nothing(server: Running, name: str) -> None:
    data, status = HOSTILE[name]
    before = found(server)
    bring(server, data, status)
    assert found(server) == before


def test_strange_recipes_do_no_harm(server: Running) -> None:
    for recipe in (
        'Seed: 1, Model: "\\ud800\\u0000", Label: "\\udfff"',
        "Seed: 1, Model: " + "m" * 1000 + ", Label: " + "l" * 1000,
        "Seed: 1, Model: plain, Psi: 1e308, SD: -5",
        "Seed: 1, Model: plain, Directions: [[[, Layers: {}",
        "Seed: 1, Model: plain, Translate: a b",
        "Seed: 1, Model: plain, Translate: 5",
        "Seed: 1, Model: plain, Directions: 5",
        "Seed: 1, Model: plain, Layers: 5, Directions: {}",
        'Seed: 1, Model: plain, Directions: "' + "[" * 30_000 + '"',
        "a prompt\nNegative prompt: \x00\nSeed: 1, Model: classes, Label: nobody",
    ):
        told = bring(server, png(recipe))
        assert get(server, f"/images/{told['id']}")["job"] is None
        assert server.client.get(told["file"]).status_code == 200


# Diffusion.


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("drawing")
    config = write(folder, server={"engine": {"threads": 1}})
    config.write_text(config.read_text() + f'\n[models.words]\nfile = "{save("sd", folder)}"\n')
    with serve(config) as running:
        yield running


def encode(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


PIXELS = np.random.default_rng(3).integers(0, 255, (64, 64, 3), np.uint8)
MASK = np.repeat(np.repeat([[0, 90], [180, 255]], 32, 0), 32, 1).astype(np.uint8)
QUICK: dict[str, Any] = {"prompt": "A red face, with glasses", "steps": 2}


@pytest.mark.parametrize("name", ["text2img", "img2img", "inpainting"])
def test_diffusion_is_made_again_from_all_that_it_started_from(drawing: Running, name: str) -> None:
    image, mask = (base64.b64encode(encode(array)).decode() for array in (PIXELS, MASK))
    given = {"text2img": {}, "img2img": {"image": image}, "inpainting": {"image": image, "mask_image": mask}}[name]
    ids, answer = make(drawing, f"/{name}/", json=QUICK | given | {"number_of_images": 2})
    assert answer.json()["parameters"]["image_ids"] == ids
    told = get(drawing, f"/images/{ids[1]}")
    assert (told["kind"], told["model"], told["prompt"]) == ("diffuse", "words", QUICK["prompt"])
    assert sorted(told["inputs"]) == {"text2img": [], "img2img": ["image"], "inpainting": ["image", "mask"]}[name]
    assert found(drawing, text="GLASSES red")[0] == ids[1]
    kept = drawing.client.get(told["file"]).content
    assert kept == base64.b64decode(answer.json()["images"][1])
    again = drawing.client.post(f"/images/{ids[1]}/regenerate")
    assert (again.status_code, again.content == kept) == (200, True), again.text[:200]


def test_a_kept_picture_is_the_parent_of_what_starts_from_its_blob(drawing: Running) -> None:
    (parent,), _ = make(drawing, "/text2img/", json=QUICK)
    query = {**QUICK, "initial_image": get(drawing, f"/images/{parent}")["blob_id"], "seed": 1}
    answer = drawing.client.get("/img2img", params=query)
    assert answer.status_code == 200, answer.text
    child = answer.headers["x-image-id"]
    assert get(drawing, f"/images/{child}")["parents"] == [parent]
    assert drawing.client.post(f"/images/{child}/regenerate").content == answer.content


def test_a_drawing_of_words_comes_back_from_its_file(drawing: Running) -> None:
    (image_id,), _ = make(drawing, "/text2img/", json=QUICK | {"negative_prompt": "hats"})
    data = drawing.client.get(f"/images/{image_id}/file").content
    told = bring(drawing, data)
    assert told["prompt"] == QUICK["prompt"]
    again = drawing.client.post(f"/images/{told['id']}/regenerate")
    assert (again.status_code, again.content == data) == (200, True), again.text[:200]


def test_defaults_that_change_do_not_change_kept_pictures(tmp_path: Path) -> None:
    config = write(tmp_path)
    folder = save("sd", tmp_path)
    text = config.read_text()
    config.write_text(text + f'\n[models.words]\nfile = "{folder}"\nwarmup = false\n[models.words.diffusion]\nsteps = 2\n')
    with serve(config) as server:
        (image_id,), _ = make(server, "/text2img/", json={"prompt": "a face"})
        kept = server.client.get(f"/images/{image_id}/file").content
    config.write_text(text + f'\n[models.words]\nfile = "{folder}"\nwarmup = false\n[models.words.diffusion]\nsteps = 3\nguidance = 2.0\n')
    with serve(config) as server:
        again = server.client.post(f"/images/{image_id}/regenerate")
        assert (again.status_code, again.content == kept) == (200, True)

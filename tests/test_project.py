"""Projection: the search itself on tiny networks of every family, and its route and task on a real server."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from api.conf import ModelConf
from api.errors import BadInput, Cancelled, NoSuchLabel
from api.models.base import Checkpoint, Model, Place, Previews, go_on
from api.models.descent import as_target, correlation, distance, pyramid
from api.models.families import precure, stylegan2, stylegan3
from api.models.formats.safetensors import write
from api.models.jobs import Generate, Job, Output, Pixels, Project, Synthesize
from tests.checkpoints import SMALL, made, tiny_precure
from tests.serving import Running, serve, write_config
from tests.test_http import npy, picture, unpack
from tests.test_stylegan3 import small
from tests.test_tasks import events

FAMILIES = {"precure": precure, "stylegan2": stylegan2, "stylegan3": stylegan3}
STEPS = 60


def checkpoint(family: str, folder: Path) -> Checkpoint:
    if family == "precure":
        return tiny_precure(folder / "tiny.safetensors", categories=3, levels=4)
    return made("stylegan2", **SMALL) if family == "stylegan2" else small()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("project")
    loaded: Model = FAMILIES[request.param].load(checkpoint(request.param, folder), ModelConf(file=Path("x")), Place(id="m"))
    return loaded


def run(model: Model, job: Job) -> Output:
    (output,) = model.run([model.prepare(job)], go_on)
    return output


def target(model: Model, seed: int = 1000) -> Pixels:
    return run(model, Generate(model="m", seed=seed, noise="none")).image


def psnr(image: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.square(image.astype(float) - other).mean()))


def test_a_picture_of_the_model_is_found_again(model: Model) -> None:
    image = target(model)
    found = run(model, Project(model="m", seed=3, image=image, steps=STEPS, noise="none", starts=4))
    assert found.styles is not None
    assert found.styles.shape == (model.info.levels, model.info.w_size)
    others = [psnr(target(model, seed), image) for seed in range(20)]
    assert psnr(found.image, image) > max(others) + 3
    assert found.extra["psnr"] == pytest.approx(psnr(found.image, image), abs=0.01)
    again = run(model, Synthesize(model="m", seed=3, styles=found.styles, noise="none"))
    assert np.array_equal(again.image, found.image)


def test_the_same_job_finds_the_same_styles(model: Model) -> None:
    job = Project(model="m", seed=5, image=target(model), steps=12, starts=2)
    one, two = run(model, job), run(model, job)
    assert one.styles is not None
    assert two.styles is not None
    assert np.array_equal(one.styles, two.styles)
    assert one.extra["noise"] == ("const" if "const" in model.info.noises else "none")


def test_one_style_for_all_levels_where_it_is_asked_for(model: Model) -> None:
    found = run(model, Project(model="m", seed=5, image=target(model), steps=12, starts=2, space="w"))
    assert found.styles is not None
    assert (found.styles == found.styles[0]).all()


def test_regularisation_pulls_toward_the_mean(model: Model) -> None:
    image, far = target(model), []
    for pull in (0.0, 1.0):
        styles = run(model, Project(model="m", seed=5, image=image, steps=30, starts=1, regularisation=pull)).styles
        assert styles is not None
        far.append(float(np.square(styles - model.means.all).mean()))  # type: ignore[attr-defined]
    assert far[1] < 0.2 * far[0]


def test_noise_may_be_fitted_along(model: Model) -> None:
    image = run(model, Generate(model="m", seed=1000, noise="random")).image
    found = run(model, Project(model="m", seed=5, image=image, steps=12, starts=2, noise="random", fit_noise=True))
    assert found.styles is not None
    assert np.isfinite(found.styles).all()


def test_steps_are_told_and_cancelling_takes_effect_within_one(model: Model) -> None:
    job = model.prepare(Project(model="m", seed=5, image=target(model), steps=10, starts=2))
    seen: list[tuple[int, int]] = []
    shown: list[Pixels | None] = []

    def watch(index: int, total: int, previews: Previews | None = None) -> None:
        seen.append((index, total))
        if previews is not None:
            shown.extend(previews())

    model.run([job], watch)
    total = seen[0][1]
    assert [index for index, _ in seen] == list(range(total + 1))
    assert {count for _, count in seen} == {total}
    assert len(shown) == 10
    assert all(image is not None and image.shape == (model.info.height, model.info.width, 3) for image in shown)
    for limit in (0, 2, total - 3):
        calls: list[int] = []

        def stop(index: int, total: int, previews: Previews | None = None, calls: list[int] = calls, limit: int = limit) -> None:
            calls.append(index)
            if index == limit:
                raise Cancelled

        with pytest.raises(Cancelled):
            model.run([job], stop)
        assert calls == list(range(limit + 1))


def test_other_jobs_have_their_turn_between_steps(model: Model) -> None:
    """What a step computes meanwhile, on the same network, changes nothing."""
    job = model.prepare(Project(model="m", seed=5, image=target(model), steps=10, starts=2))
    other = model.prepare(Generate(model="m", seed=1))
    alone = model.run([job], go_on)[0]

    def give_way(index: int, total: int, previews: Previews | None = None) -> None:
        model.run([other], go_on)

    company = model.run([job], give_way)[0]
    assert np.array_equal(alone.image, company.image)
    assert model.key(job) != model.key(other)
    assert job.long
    assert not other.long


def test_wrong_jobs_are_refused(model: Model) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    wrong: list[dict[str, Any]] = [
        {"steps": 0},
        {"steps": 10_000},
        {"starts": 33},
        {"regularisation": -1.0},
        {"regularisation": float("nan")},
    ]
    wrong += [{"regularisation": float("nan")}, {"seed": -1}, {"noise": "loud"}]
    for fields in [*wrong, {"image": image[:, :, 0]}, {"image": image.astype(np.float32)}]:
        with pytest.raises(BadInput):
            model.prepare(Project(**{"model": "m", "image": image, **fields}))
    with pytest.raises(NoSuchLabel):
        model.prepare(Project(model="m", image=image, label="dog"))


@pytest.mark.parametrize("family", ["stylegan2", "stylegan3"])
def test_networks_for_half_precision_have_gradients_in_single(family: str, tmp_path: Path) -> None:
    """What is frozen for GPUs is of another type than what a search computes with."""
    told = checkpoint(family, tmp_path)
    plain, half = (FAMILIES[family].build({**told.description.arguments, "half_levels": 2}, told.tensors) for _ in range(2))
    half.freeze(torch.bfloat16)
    found = []
    for network in (plain.requires_grad_(False), half):
        ws = torch.randn(2, network.synthesis.num_ws, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        network.synthesis(ws).square().mean().backward()
        assert ws.grad is not None
        found.append(ws.grad)
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-7)


def test_the_distance_is_its_formula() -> None:
    random = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 3, 16, 16, generator=random), torch.rand(1, 3, 16, 16, generator=random)
    expected = []
    for picture_ in x:
        total = 0.0
        for size in (16, 8):
            error = np.asarray((picture_ - y[0]).reshape(3, size, 16 // size, size, 16 // size).mean(dim=(2, 4)))
            total += float(np.abs(error).mean() + np.abs(np.diff(error, axis=1)).mean() + np.abs(np.diff(error, axis=2)).mean())
        expected.append(total / 2)
    assert distance(x, pyramid(y)).tolist() == pytest.approx(expected, rel=1e-5)
    assert float(distance(y, pyramid(y))[0]) == 0
    white = torch.randn(1, 1, 64, 64, generator=random)
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1)
    assert float(correlation(white)) < 0.1 * float(correlation(smooth / smooth.std()))


def test_the_middle_square_is_what_counts() -> None:
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = np.arange(32, dtype=np.uint8)[:, None, None]
    assert torch.equal(as_target(wide, 32)[0, :, :, 5] * 255, torch.arange(32.0).expand(3, -1))
    assert as_target(wide, 8).shape == (1, 3, 8, 8)


# Over HTTP.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("project_http")
    tiny_precure(folder / "m.safetensors", categories=3, levels=4)
    write(folder / "second.safetensors", made("stylegan2", **SMALL))
    models = {name: {"file": f"{name}.safetensors", "relative": True} for name in ("m", "second")}
    with serve(write_config(folder, models, {"engine": {"threads": 1}}, blobs={"max_pixels": 100_000})) as running:
        yield running


def face(server: Running) -> bytes:
    content: bytes = server.client.get("/m/image?seed=1000&label=cat1&noise=none").content
    return content


def project(server: Running, status: int = 200, accept: str = "application/json", **kwargs: Any) -> Any:
    answer = server.client.post("/m/project", headers={"Accept": accept, **kwargs.pop("headers", {})}, **kwargs)
    assert answer.status_code == status, answer.text
    return answer.json() if accept == "application/json" else answer


def test_a_picture_may_come_in_every_way(server: Running) -> None:
    content, told = face(server), {"seed": 3, "steps": 20, "label": "cat1", "starts": 2}
    text = base64.b64encode(content).decode()
    first = project(server, json={"image": text, **told})
    blob_id = server.client.post("/blob", content=content, headers={"Content-Type": "image/png"}).json()
    others = [
        project(server, json={"image": f"data:image/png;base64,{text}", "seed": 3}, params=told | {"seed": 4}),
        project(server, json={"initial_image": blob_id}, params=told),
        project(server, content=content, params=told, headers={"Content-Type": "image/png"}),
        project(server, files={"file": ("face.png", content, "image/png")}, params=told),
    ]
    assert all(other["data"] == first["data"] for other in others)
    assert (first["seed"], first["label"], first["mimeType"]) == (3, "cat1", "image/png")
    bare = project(server, accept="image/png", json={"image": text, **told})
    assert bare.content == base64.b64decode(first["data"])
    assert json.loads(bare.headers["x-recipe"])["Steps"] == 20


def test_the_style_goes_wherever_a_style_goes(server: Running) -> None:
    found = project(server, content=face(server), params={"seed": 3, "steps": 20}, headers={"Content-Type": "image/png"})
    rows = unpack(found["style"])
    assert np.array_equal(rows, np.stack([unpack(style) for style in found["styles"]]))
    expected = picture(found["data"])
    query: dict[str, Any] = {"seed": 3, "noise": "none"}
    for path in ("/m/blend", "/m/mix"):
        again = server.client.post(path, params=query, json={"styles": [found["style"]]}).json()
        assert np.array_equal(picture(again["data"]), expected)
    moved = server.client.post("/m/edit", json={**query, "styles": [found["style"]]}).json()
    assert np.array_equal(picture(moved["data"]), expected)
    walk = {"styles": [found["style"], found["styles"]], "frames": 2, "noise": "none"}
    assert server.client.post("/m/interpolate", json=walk).status_code == 200


def test_wrong_requests_are_refused(server: Running) -> None:
    text = base64.b64encode(face(server)).decode()
    assert "exactly one" in project(server, 422, json={})["detail"]
    assert "exactly one" in project(server, 422, json={"image": text, "initial_image": "x"})["detail"]
    assert project(server, 404, json={"initial_image": "x"})["detail"]["type"] == "blob"
    assert project(server, 404, json={"image": text, "label": "dog"})["detail"]["type"] == "label"
    assert project(server, 422, json={"image": text, "steps": 2001})["detail"][0]["loc"] == ["body", "steps"]
    assert project(server, 422, json={"image": text, "noise": "const"})
    for body in (b"{", b"[]", b"\xff", b""):
        project(server, 422, content=body, headers={"Content-Type": "application/json"})
    project(server, 415, json={"image": "!"})
    project(server, 415, json={"image": "AAAA"})
    project(server, 415, content=b"text", headers={"Content-Type": "image/png"})
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 200)).save(buffer, "PNG")
    project(server, 413, content=buffer.getvalue(), headers={"Content-Type": "image/png"})
    assert server.client.post("/nobody/project", json={"image": text}).status_code == 404
    assert "Traceback" not in server.log.read_text()


def test_a_task_shows_how_far_it_is_and_tells_the_style(server: Running) -> None:
    blob_id = server.client.post("/blob", content=face(server), headers={"Content-Type": "image/png"}).json()
    params = {"params_type": "project", "model": "m", "initial_image": blob_id, "seed": 3, "steps": 150, "previews": 2}
    task_id = server.client.post("/task", json=params).json()
    told = events(server, task_id)
    kinds = [kind for _, kind, _ in told]
    assert (kinds[0], kinds[-1]) == ("pending", "finished"), told[-1]
    progress = [data for _, kind, data in told if kind == "progress"]
    assert progress
    assert [data["step"] for data in progress] == sorted(data["step"] for data in progress)
    assert all(data["step"] <= data["steps"] for data in progress)
    assert any(data.get("preview", "").startswith("data:image/jpeg;base64,") for data in progress)
    image = told[-1][2]["image"]
    direct = project(server, content=face(server), params={"seed": 3, "steps": 150}, headers={"Content-Type": "image/png"})
    assert image["style"] == direct["style"]
    assert image["parameters_used"]["psnr"] == direct["psnr"]
    made_of = {"styles": [image["style"]]}
    again = server.client.post("/m/blend", params={"noise": "none", "seed": 3}, json=made_of).json()
    blob = np.asarray(Image.open(io.BytesIO(server.client.get(f"/blob/{image['blob_id']}").content)))
    assert np.array_equal(picture(again["data"]), blob)
    missing = server.client.post("/task", json={**params, "initial_image": "nothing"})
    assert missing.status_code == 404


def test_a_task_is_cancelled_while_it_runs(server: Running) -> None:
    blob_id = server.client.post("/blob", content=face(server), headers={"Content-Type": "image/png"}).json()
    with server.frozen():  # the search cannot end before it is cancelled
        params = {"params_type": "project", "model": "m", "initial_image": blob_id, "steps": 2000}
        task_id = server.client.post("/task", json=params).json()
        assert server.client.delete(f"/task/{task_id}").status_code == 204
        assert events(server, task_id)[-1][1] == "cancelled"
    assert server.client.post("/m/edit", json={"styles": [npy(np.zeros(16, np.float32))]}).status_code == 200

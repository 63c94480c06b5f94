"""What all routes of GANs take beside the original API's fields: truncation of some levels, pose, noise and styles for each level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from api.models.formats.safetensors import write
from tests.checkpoints import SMALL, made, tiny_precure
from tests.serving import Running, serve, write_config
from tests.test_http import npy, picture, unpack
from tests.test_stylegan3 import small

NEW = ["cutoff", "rotate", "translate", "noise_seed"]
STILL: dict[str, Any] = {"seed": 3, "noise": "none"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("rendering")
    tiny_precure(folder / "first.safetensors", levels=4)
    write(folder / "second.safetensors", made("stylegan2", **SMALL))
    write(folder / "third.safetensors", small())
    models = {name: {"file": f"{name}.safetensors", "relative": True, "warmup": False} for name in ("first", "second", "third")}
    with serve(write_config(folder, models, {"engine": {"threads": 1}})) as running:
        yield running


def post(server: Running, path: str, body: Any = None, status: int = 200, **query: Any) -> Any:
    answer = server.client.post(path, params=query, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def shown(answer: Any) -> bytes:
    """The pixels, which the recipe in the file has no part in."""
    pixels: bytes = picture(answer["data"]).tobytes()
    return pixels


def test_new_fields_follow_the_known_ones(server: Running) -> None:
    spec = server.client.get("/openapi.json").json()
    own = {"generate": ["label", "psi", "sd"], "blend": ["weights"], "mix": ["levels"], "image": ["label", "psi", "sd"]}
    for route, fields in own.items():
        operation = next(o for path in spec["paths"].values() for o in path.values() if o["operationId"] == route)
        names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
        new = [*NEW, *(["format"] if route == "image" else ["psi"] if route in ("blend", "mix") else [])]
        assert [name for name in names if name != "count"] == ["seed", "noise", *fields, *new]
        told = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
        assert (told["rotate"]["minimum"], told["rotate"]["maximum"]) == (-360, 360)
        assert (told["translate"]["minItems"], told["translate"]["maxItems"]) == (2, 2)
    for name in ("EditRequestBody", "InterpolateRequestBody"):
        assert set(NEW) <= set(spec["components"]["schemas"][name]["properties"])


def test_cutoff_truncates_the_first_levels_alone(server: Running) -> None:
    whole = unpack(post(server, "/first/generate", **STILL)["style"])
    half = unpack(post(server, "/first/generate", **STILL, psi=0.5)["style"])
    cut = post(server, "/first/generate", **STILL, psi=0.5, cutoff=3)
    assert np.array_equal(unpack(cut["style"]), np.stack([half, half, half, whole]))
    edited = post(server, "/first/edit", {**STILL, "psi": 0.5, "cutoff": 3})
    assert shown(edited) == shown(cut)
    blended = post(server, "/first/blend", {"styles": [npy(whole)]}, **STILL, psi=0.5, cutoff=3)
    assert np.allclose(unpack(blended["style"]), unpack(cut["style"]), atol=1e-6)
    assert "0 to 4" in post(server, "/first/generate", status=422, cutoff=5)["detail"]
    url = "/first/image?seed=3&psi=0.5"
    plain, other = server.client.get(url), server.client.get(f"{url}&cutoff=1")
    assert plain.headers["etag"] != other.headers["etag"]
    assert plain.content != other.content
    assert '"Cutoff": 1' in other.headers["x-recipe"]


def test_a_style_for_each_level_goes_wherever_a_style_goes(server: Running) -> None:
    rows = unpack(post(server, "/first/generate", **STILL, psi=0.3, cutoff=2)["style"])
    expected = shown(post(server, "/first/generate", **STILL, psi=0.3, cutoff=2))
    blended = post(server, "/first/blend", {"styles": [npy(rows)]}, **STILL)
    assert shown(blended) == expected
    assert np.array_equal(unpack(blended["style"]), rows)
    mixed = post(server, "/first/mix", {"styles": [npy(rows)]}, **STILL)
    assert shown(mixed) == expected
    assert shown(post(server, "/first/edit", {**STILL, "styles": [npy(rows)]})) == expected
    other = unpack(post(server, "/first/generate", seed=8, noise="none")["style"])
    both = post(server, "/first/blend", {"styles": [npy(rows), npy(other)]}, **STILL, weights=[3, 1])
    assert np.allclose(unpack(both["style"]), 0.75 * rows + 0.25 * other, atol=1e-6)
    levels = post(server, "/first/mix", {"styles": [npy(rows), npy(other)]}, **STILL)
    assert np.array_equal(unpack(levels["styles"][1]), rows[1])
    assert np.array_equal(unpack(levels["styles"][2]), other)
    walk = {"styles": [npy(rows), npy(other)], "frames": 2, "noise": "none", "format": "apng"}
    assert post(server, "/first/interpolate", walk)["frames"] == 2
    for wrong in (rows[:3], rows[:, :3], rows[None]):
        assert post(server, "/first/blend", {"styles": [npy(wrong)]}, status=422)["detail"] == "invalid array"


def test_pictures_of_the_third_kind_turn_and_move(server: Running) -> None:
    plain = shown(post(server, "/third/generate", **STILL))
    poses: list[dict[str, Any]] = [{"rotate": 90}, {"translate": [0.25, 0]}]
    for pose in poses:
        found = post(server, "/third/generate", **STILL, **pose)
        moved = shown(found)
        assert moved != plain
        assert shown(post(server, "/third/edit", {**STILL, **pose})) == moved
        style = {"styles": [found["style"]]}
        assert shown(post(server, "/third/blend", style, **STILL, **pose)) == moved
        assert shown(post(server, "/third/mix", style, **STILL, **pose)) == moved
        refused = post(server, "/second/generate", status=422, **pose)
        assert "StyleGAN3" in refused["detail"]
        assert "StyleGAN3" in post(server, "/first/edit", {"seed": 1, **pose}, 422)["detail"]
    url = "/third/image?seed=3&noise=none"
    near = [f"&translate={shift}&translate=0" for shift in ("0.1234567", "0.12345678")]  # to the last digit
    assert len({server.client.get(url + pose).headers["etag"] for pose in ("", "&rotate=1", *near)}) == 4
    bad: list[dict[str, Any]] = [{"rotate": 361}, {"rotate": "nan"}, *({"translate": shift} for shift in ([0.1], [0.1, 0, 0], [3, 0]))]
    for wrong in bad:
        post(server, "/third/generate", status=422, **wrong)


def test_noise_is_drawn_from_its_own_seed_or_the_checkpoints(server: Running) -> None:
    style = {"styles": [post(server, "/second/generate", seed=3)["style"]]}
    found = {kind: shown(post(server, "/second/blend", style, seed=3, noise=kind)) for kind in ("random", "const", "none")}
    assert len(set(found.values())) == 3
    other = shown(post(server, "/second/blend", style, seed=4))
    assert other != found["random"]
    assert shown(post(server, "/second/blend", style, seed=4, noise_seed=3)) == found["random"]
    assert shown(post(server, "/second/generate", seed=3, noise_seed=3)) == found["random"]
    assert shown(post(server, "/second/edit", {"seed": 3, "noise_seed": 4})) == other
    assert shown(post(server, "/second/generate", seed=3, noise="const")) == found["const"]
    several = post(server, "/second/blend", style, seed=3, noise_seed=9, count=2)
    assert shown(several) == shown(several["more"][0])
    assert "random, none" in post(server, "/first/generate", status=422, noise="const")["detail"]

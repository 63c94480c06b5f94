"""The unmodified OpenAI SDK against a real server with a tiny pipeline and a tiny GAN."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import numpy as np
import openai
import pytest
from PIL import Image

from api.schemas.openai import find_label
from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config
from tests.tiny_pipelines import save

QUICK: dict[str, Any] = {"seed": 5, "steps": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("openai")
    tiny_precure(folder / "classes.safetensors", categories=3, levels=4, seed=1)
    models = {
        "classes": {"file": "classes.safetensors", "relative": True, "warmup": False},
        "words": {"file": str(save("sd", folder)), "warmup": False},
    }
    with serve(write_config(folder, models, {"engine": {"threads": 1}, "http": {"max_body": 2_000_000}})) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def pixels(text: str | None) -> Any:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def png(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


NOISE = np.random.default_rng(3).integers(0, 255, (64, 64, 3), np.uint8)
MASK = np.full((64, 64, 4), 255, np.uint8)
MASK[:, :32, 3] = 0  # transparent: made anew


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["classes", "words"]
    assert client.models.retrieve("words").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


def test_pictures_are_those_of_the_other_routes(server: Running, client: openai.OpenAI) -> None:
    made = client.images.generate(prompt="a red face", model="words", n=2, size="64x64", extra_body=QUICK)
    assert made.created > 1_700_000_000
    body = {"prompt": "a red face", "width": 64, "height": 64, "number_of_images": 2, **QUICK}
    direct = server.client.post("/text2img/", json=body).json()["images"]
    assert made.data is not None
    assert [entry.b64_json for entry in made.data] == direct


def test_formats(client: openai.OpenAI) -> None:
    sizes = []
    for quality in (10, 95):
        made = client.images.generate(
            prompt="x", output_format="jpeg", output_compression=quality, size="auto", extra_body=QUICK, model="words"
        )
        assert made.data is not None
        assert made.data[0].b64_json is not None
        data = base64.b64decode(made.data[0].b64_json)
        assert data.startswith(b"\xff\xd8")
        sizes.append(len(data))
    assert sizes[0] < sizes[1]


def test_a_url_leads_to_the_picture(server: Running, client: openai.OpenAI) -> None:
    made = client.images.generate(prompt="x", model="words", response_format="url", extra_body=QUICK)
    assert made.data is not None
    url = made.data[0].url
    assert url is not None
    assert url.startswith(server.url + "/blob/")
    assert server.client.get(url).content.startswith(b"\x89PNG")


def test_a_gan_listens_to_labels_and_seeds(server: Running, client: openai.OpenAI) -> None:
    labels = next(entry["labels"] for entry in server.client.get("/models/").json() if entry["id"] == "classes")
    made = client.images.generate(prompt=f"the {labels[1]} with seed 7", model="classes", extra_body={"psi": 0.5})
    direct = server.client.post("/classes/generate", params={"seed": 7, "label": labels[1], "psi": 0.5}).json()["data"]
    assert made.data is not None
    assert made.data[0].b64_json == direct
    first, second, other = (
        client.images.generate(prompt=prompt, model="classes").data[0].b64_json  # type: ignore[index]
        for prompt in ("a  sunny day", "a sunny day", "a rainy day")
    )
    assert first == second
    assert first != other


def test_without_a_model_the_one_that_follows_words_draws(client: openai.OpenAI) -> None:
    told = client.images.generate(prompt="a red face", model="words", extra_body=QUICK)
    untold = client.images.generate(prompt="a red face", extra_body=QUICK)
    assert told.data is not None
    assert untold.data is not None
    assert told.data[0].b64_json == untold.data[0].b64_json


def test_the_longest_of_many_labels_is_found() -> None:
    labels = [f"tench, Tinca tinca {i}" for i in range(10_000)] + ["fox", "arctic fox", "Fox (white)"]
    assert find_label("an arctic fox in the snow", labels) == "arctic fox"
    assert find_label("a TENCH, tinca tinca 4321", labels) == "tench, Tinca tinca 4321"
    assert find_label("the fox (white) of foxes", labels) == "fox"
    assert find_label("foxes " * 50, labels) is None
    for prompt, label in (("in istanbul", "İstanbul"), ("KAPI", "kapı")):
        assert find_label(prompt, [*labels, label]) == label


def test_an_edit_keeps_what_the_mask_covers(client: openai.OpenAI) -> None:
    for image in (png(NOISE), [png(NOISE)]):
        made = client.images.edit(image=image, mask=png(MASK), prompt="a red face", model="words", extra_body=QUICK)
        assert made.data is not None
        assert (pixels(made.data[0].b64_json) != NOISE)[:, :32].any()
    nothing = client.images.edit(image=png(NOISE), mask=png(np.full_like(MASK, 255)), prompt="x", model="words", extra_body=QUICK)
    assert nothing.data is not None
    assert np.array_equal(pixels(nothing.data[0].b64_json), NOISE)


def test_edits_come_as_json_too(server: Running, client: openai.OpenAI) -> None:
    data = base64.b64encode(png(NOISE)).decode()
    body: dict[str, Any] = {"prompt": "a red face", "images": [{"image_url": f"data:image/png;base64,{data}"}], "strength": 0.5, **QUICK}
    answer = server.client.post("/v1/images/edits", json=body)
    assert answer.status_code == 200, answer.text
    made = client.images.edit(image=png(NOISE), prompt="a red face", extra_body={"strength": 0.5, **QUICK})
    assert made.data is not None
    assert answer.json()["data"][0]["b64_json"] == made.data[0].b64_json
    body["images"] = [{"image_url": "http://example.org/x.png"}]
    assert server.client.post("/v1/images/edits", json=body).status_code == 400


def test_a_form_s_type_may_be_written_in_any_case(server: Running) -> None:
    form = server.client.build_request("POST", "/v1/images/edits", data={"prompt": "x", "steps": "3"}, files={"image": png(NOISE)})
    form.headers["Content-Type"] = form.headers["Content-Type"].replace("multipart/form-data", "Multipart/Form-Data")
    answer = server.client.send(form)
    assert answer.status_code == 200, answer.text


def test_a_stream_shows_the_picture_on_its_way(client: openai.OpenAI) -> None:
    whole = client.images.generate(prompt="a red face", model="words", extra_body=QUICK | {"steps": 6})
    stream = client.images.generate(prompt="a red face", model="words", stream=True, partial_images=2, extra_body=QUICK | {"steps": 6})
    told = list(stream)
    assert [event.type for event in told] == 2 * ["image_generation.partial_image"] + ["image_generation.completed"]
    assert [event.partial_image_index for event in told[:-1]] == [0, 1]  # type: ignore[union-attr]
    assert whole.data is not None
    assert told[-1].b64_json == whole.data[0].b64_json
    assert pixels(told[0].b64_json).ndim == 3
    edit = client.images.edit(image=png(NOISE), prompt="x", model="words", stream=True, extra_body=QUICK)
    assert [event.type for event in edit] == ["image_edit.completed"]


def test_what_is_ignored_is_told(client: openai.OpenAI) -> None:
    answer = client.images.with_raw_response.generate(prompt="x", model="words", quality="high", user="me", extra_body=QUICK)
    assert answer.headers["x-ignored-fields"] == "quality, user"
    answer = client.images.with_raw_response.generate(prompt="x", model="classes", size="1024x1024")
    assert answer.headers["x-ignored-fields"] == "size"


def test_errors_are_readable(server: Running, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no such model: dall-e-3"):
        client.images.generate(prompt="x", model="dall-e-3")
    with pytest.raises(openai.BadRequestError, match=r"prompt: .*at most 300 characters") as caught:
        client.images.generate(prompt="x" * 301, model="words")
    assert (caught.value.param, caught.value.code, caught.value.type) == ("prompt", "invalid_parameter", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="width is 72000"):
        client.images.generate(prompt="x", model="words", size="72000x64")
    with pytest.raises(openai.BadRequestError, match="steps"):
        list(client.images.generate(prompt="x", model="words", stream=True, extra_body={"steps": 151}))
    with pytest.raises(openai.BadRequestError, match="alpha"):
        client.images.edit(image=png(NOISE), mask=png(NOISE), prompt="x")
    with pytest.raises(openai.BadRequestError, match="cannot do this"):
        client.images.edit(image=png(NOISE), prompt="x", model="classes")
    with pytest.raises(openai.BadRequestError, match="image"):
        client.images.edit(image=b"no picture", prompt="x")
    for method, path, content, status in (
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/v1/images/generations", b"", 405),
        ("POST", "/v1/images/generations", b"{", 400),
        ("POST", "/v1/images/edits", b"{", 400),
        ("POST", "/v1/images/edits", b"[]", 400),
        ("POST", "/v1/images/edits", b'{"prompt": "x", "model": "words", "image": [["%b"]]}' % base64.b64encode(png(NOISE)), 400),
        ("POST", "/v1/images/edits", b'{"prompt": "x", "mask": ' + b"[" * 900 + b"]" * 900 + b"}", 400),
        ("POST", "/v1/images/generations", b"x" * 3_000_000, 413),
    ):
        answer = server.client.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), path
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_openapi_tells_the_errors_that_are_answered(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    own = {path: operations for path, operations in document["paths"].items() if path.startswith("/v1/")}
    assert len(own) == 4
    for path, operations in own.items():
        for method, operation in operations.items():
            assert "422" not in operation["responses"]
            assert ("400" in operation["responses"]) == (method == "post"), path
            for status, response in operation["responses"].items():
                schema = response["content"]["application/json"]["schema"]
                assert (schema == {"$ref": "#/components/schemas/Envelope"}) == (status >= "400"), (path, status)
    assert "422" in document["paths"]["/text2img/"]["post"]["responses"]
    validator = jsonschema_rs.validator_for({"$ref": "#/components/schemas/Envelope", "components": document["components"]})
    for path, body, headers, status in (
        ("/v1/images/generations", {}, {}, 400),
        ("/v1/images/generations", {"prompt": "x", "model": "words", "steps": 151}, {}, 400),
        ("/v1/images/generations", {"prompt": "x", "model": "none"}, {}, 404),
        ("/v1/images/generations", {"prompt": "x", "user": "x" * 3_000_000}, {}, 413),
        ("/v1/images/edits", {"prompt": "x"}, {}, 400),
        # What is wrong with a header, too, is told as these clients expect it.
        ("/v1/images/generations", {"prompt": "x"}, {"X-Parents": ",".join(map(str, range(999)))}, 400),
        ("/v1/images/generations", {"prompt": "x"}, {"X-Session": "x" * 1001}, 400),
    ):
        answer = server.client.post(path, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert str(status) in own[path]["post"]["responses"]
        assert validator.is_valid(answer.json()), answer.text
    assert not validator.is_valid({"detail": []})


@pytest.mark.parametrize(("path", "allowed"), [("images/generations", "POST"), ("images/edits", "POST"), ("models", "GET")])
def test_options_are_answered(server: Running, path: str, allowed: str) -> None:
    answer = server.client.options(f"/v1/{path}")
    assert (answer.status_code, answer.headers["allow"]) == (204, f"{allowed}, OPTIONS")

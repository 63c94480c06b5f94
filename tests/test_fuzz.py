"""Schemathesis over the whole OpenAPI of a real server: whatever is sent, no answer is a 5xx."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from tests.checkpoints import tiny_precure
from tests.serving import Running, serve, write_config

IDS = {"image_id", "session_id", "collection_id"}
EXAMPLES = 200 if os.environ.get("LONG") else 25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_precure(folder / "plain.safetensors", levels=3)
    tiny_precure(folder / "classes.safetensors", categories=3, levels=4, seed=1)
    models = {name: {"file": f"{name}.safetensors", "relative": True} for name in ("plain", "classes")}
    with serve(write_config(folder, models, {"http": {"max_body": 1 << 20}}, store={"history": True})) as running:
        yield running


@pytest.fixture(scope="module")
def schema(server: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def find_id(server: Running, path: str) -> str:
    """Of a picture, a session or a collection, which are made where there is none."""
    kind = path.split("/")[1]
    if not server.client.get(f"/{kind}").json()[kind]:
        server.client.post("/plain/generate", headers={"X-Session": "fuzz"})
        server.client.post("/collections", json={"name": "fuzz"})
    found: str = server.client.get(f"/{kind}").json()[kind][0]["id"]
    return found


def test_no_answer_is_a_server_error(server: Running, schema: schemathesis.BaseSchema) -> None:
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert {"/{model_id}/generate", "/{model_id}/mix", "/models/"} <= {operation.path for operation in operations}
    for operation in operations:
        press(server, operation)


def press(server: Running, operation: Any) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(), model=st.sampled_from(["plain", "classes", None]))
    def send(case: Any, model: str | None) -> None:
        # Made-up ids end at 404; most cases shall come further.
        if model and "model_id" in case.path_parameters:
            case.path_parameters["model_id"] = model
        if model and (names := IDS & set(case.path_parameters)):
            case.path_parameters[names.pop()] = find_id(server, operation.path)
        if operation.path == "/{model_id}/project" and isinstance(case.query, dict):
            shorten(case.query)
        response = case.call(base_url=server.url, timeout=90)
        # 503 says what it means, with Retry-After; every other 5xx would be a fault of ours.
        assert response.status_code < 500 or (response.status_code == 503 and response.headers["retry-after"]), case.as_curl_command()

    send()


def shorten(query: dict[str, Any]) -> None:
    """A search of 150 steps from many starts takes a quarter of a minute, and proves no more than one of a few."""
    for name, few in (("steps", 10), ("starts", 2)):
        asked = query.setdefault(name, few)
        if isinstance(asked, int) and few < asked <= 2000:
            query[name] = few


def test_memory_stays_flat(server: Running) -> None:
    """After all that, and after arrays that promise much, the worker is as small as it was."""

    def resident() -> int:
        text = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0])

    for _ in range(50):
        server.client.post("/plain/generate", json={"latent": "k05VTVBZAQB2" + "A" * 500_000})
    before = resident()
    for _ in range(200):
        assert server.client.post("/plain/generate", json={"latent": "k05VTVBZAQB2" + "A" * 500_000}).status_code in (415, 422)
    assert resident() - before < 20_000

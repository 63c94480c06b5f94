"""The short way and FastAPI's give the same answers. A header that the short way leaves to FastAPI chooses between them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.models.formats.safetensors import write
from api.routes.shortcut import find, read_query
from api.schemas.requests import GenerateQuery
from tests.checkpoints import SMALL, made, tiny_precure
from tests.serving import Running, serve, write_config

OWN = {"x-request-id", "date"}
LONG_WAY = {"X-Session": ""}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("shortcut")
    tiny_precure(folder / "plain.safetensors")
    write(folder / "labelled.safetensors", made("stylegan2", **SMALL, c_size=3))
    models = {name: {"file": f"{name}.safetensors", "relative": True, "warmup": False} for name in ("plain", "labelled")}
    with serve(write_config(folder, models, {"engine": {"threads": 1}})) as running:
        yield running


def ask(server: Running, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    answer = server.client.request(method, path, headers=headers, follow_redirects=False)
    return answer.status_code, {name: value for name, value in answer.headers.items() if name not in OWN}, answer.content


def compare(server: Running, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    """The status, which is the same on both ways like everything else."""
    short, long = (ask(server, method, path, (headers or {}) | more) for more in ({}, LONG_WAY))
    assert short == long, path
    return short[0]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/plain/generate?seed=1", 200),
        ("/plain/generate?seed=1&psi=0.5&sd=0.7&noise=none&noise_seed=4&cutoff=1&unknown=5", 200),
        ("/plain/generate?seed=1&count=3", 200),
        ("/labelled/generate?seed=1&label=2", 200),
        ("/labelled/generate?seed=1&label=none", 404),
        ("/labelled/generate?seed=1&label=", 422),
        ("/plain/generate?seed=1&seed=2", 200),
        ("/plain/generate?seed=1&translate=0&translate=0", 200),
        ("/plain/generate?seed=1&translate=0", 422),
        ("/plain/generate?seed=1&rotate=3", 422),
        ("/plain/generate?seed=-1", 422),
        ("/plain/generate?seed=1.0", 200),
        ("/plain/generate?seed=", 422),
        ("/plain/generate?seed=1&noise=loud", 422),
        ("/plain/generate?seed=1&psi=nan", 422),
        ("/plain/generate?seed=%31&psi=%2b0.5", 200),
        ("/plain/generate?seed=1&psi=1e400", 422),
        ("/nobody/generate?seed=1", 404),
        ("/plain/generate/?seed=1", 307),
        ("/plain/generat?seed=1", 404),
    ],
)
def test_generate(server: Running, path: str, status: int) -> None:
    assert compare(server, "POST", path) == status


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/plain/image?seed=1", {}, 200),
        ("/plain/image?seed=1&format=jpeg", {"Accept": "image/webp"}, 200),
        ("/plain/image?seed=1", {"Accept": "image/webp"}, 200),
        ("/plain/image?seed=1", {"Accept": "text/html"}, 406),
        ("/plain/image?seed=1", {"If-None-Match": "*"}, 304),
        ("/plain/image?seed=1&count=2", {}, 422),
        ("/plain/image?seed=1&format=tiff", {}, 422),
        ("/plain/generate", {}, 405),
    ],
)
def test_image(server: Running, path: str, headers: dict[str, str], status: int) -> None:
    assert compare(server, "GET", path, headers) == status


def test_an_image_without_a_seed_is_sent_to_one_with_a_seed(server: Running) -> None:
    answer = server.client.get("/plain/image?psi=0.5", follow_redirects=False)
    assert answer.status_code == 307
    assert "psi=0.5&seed=" in answer.headers["location"]


def test_requests_are_counted_under_their_route(server: Running) -> None:
    server.client.post("/plain/generate?seed=1")
    assert 'route="/{model_id}/generate"' in server.client.get("/metrics").text


VALUES = st.one_of(
    st.integers(-2, 2**33).map(str), st.floats().map(str), st.sampled_from(["", "none", "const", "1_0", " 1", "true", "１", "+2", "0x1"])
)
NAMES = st.sampled_from(["seed", "psi", "sd", "noise", "label", "cutoff", "rotate", "noise_seed", "count", "other"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.dictionaries(NAMES, VALUES, max_size=4), method=st.sampled_from(["generate", "image"]))
def test_any_query(server: Running, query: dict[str, str], method: str) -> None:
    query = {"seed": "7", "count": "1"} | query
    if query["count"] not in ("1", "2"):
        query["count"] = "1"
    path = server.client.build_request("GET", f"/plain/{method}", params=query).url.raw_path.decode()
    compare(server, "POST" if method == "generate" else "GET", path)


def scope(method: str = "POST", path: str = "/plain/generate", headers: list[tuple[bytes, bytes]] | None = None) -> dict[str, Any]:
    server = SimpleNamespace(config=SimpleNamespace(models={"plain": None}))
    return {"type": "http", "method": method, "path": path, "headers": headers or [], "state": {"server": server}}


def test_what_goes_the_short_way() -> None:
    assert find(scope()) is not None
    assert find(scope(headers=[(b"content-length", b"0"), (b"content-type", b"application/json")])) is not None
    assert find(scope("GET", "/plain/image")) is not None
    for other in (
        scope("GET"),
        scope(path="/plain/blend"),
        scope(path="/other/generate"),
        scope(path="/plain/generate/more"),
        scope(headers=[(b"content-length", b"2")]),
        scope(headers=[(b"transfer-encoding", b"chunked")]),
        scope(headers=[(b"x-session", b"mine")]),
        scope() | {"root_path": "/below"},
        scope() | {"type": "websocket"},
    ):
        assert find(other) is None
    assert read_query(b"seed=3&psi=0.5", GenerateQuery) == GenerateQuery.model_validate({"seed": 3, "psi": 0.5})
    for query in (b"seed=3&seed=4", b"seed=x", b"translate=0&translate=0", b"translate=1", b"a=" + b"a" * 3000):
        assert read_query(query, GenerateQuery) is None

"""Accounts, tokens and API keys over HTTP, and who sees whose tasks and blobs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api.auth import Environment, Tokens, is_loopback, read_flag
from api.conf import AuthConf
from api.errors import ConfigError, Forbidden, Unauthorized
from api.store.keys import hash_key, make_key
from tests.checkpoints import tiny_precure
from tests.serving import ROOT, Running, serve, write_config

SECRET = "a secret that is long enough for it"
API_KEY = make_key()
PASSWORD = "correct horse"


def write(folder: Path, **auth: Any) -> Path:
    tiny_precure(folder / "plain.safetensors", levels=3)
    return write_config(folder, {"plain": {"file": "plain.safetensors", "relative": True}}, auth={"enabled": True, **auth})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SECRET_KEY": SECRET, "ENABLE_SIGNUP": "1", "ENABLE_PUBLIC_TOKEN": "true"}.items():
            patch.setenv(name, value)
        with serve(write(tmp_path_factory.mktemp("tokens"), api_keys={"robot": hash_key(API_KEY)})) as running:
            yield running


def sign_up(server: Running, name: str) -> dict[str, str]:
    """The headers of a new user."""
    made = server.client.post("/user", json={"username": name, "password": PASSWORD})
    assert (made.status_code, made.json()) == (201, {"username": name}), made.text
    answer = server.client.post("/token", data={"username": name, "password": PASSWORD})
    assert answer.json()["token_type"] == "bearer"
    return bearer(answer.json()["access_token"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def anna(server: Running) -> dict[str, str]:
    return sign_up(server, "anna")


@pytest.fixture(scope="module")
def bert(server: Running) -> dict[str, str]:
    return sign_up(server, "bert")


CLOSED = [
    ("POST", "/plain/generate"),
    ("GET", "/plain/image"),
    ("POST", "/plain/mix"),
    ("POST", "/task"),
    ("GET", "/task/x"),
    ("POST", "/blob"),
    ("GET", "/blob/x"),
    ("POST", "/text2img/"),
    ("GET", "/txt2img?prompt=x"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_strangers_are_asked_who_they_are(server: Running, method: str, path: str) -> None:
    bodies: dict[str, Any] = {"/task": {"params_type": "generate"}, "/text2img/": {"prompt": "x"}, "/plain/mix": {"styles": ["x"]}}
    answer = server.client.request(method, path, json=bodies.get(path))
    assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer")


@pytest.mark.parametrize("path", ["/", "/version", "/models/", "/healthz", "/openapi.json"])
def test_what_computes_nothing_is_open(server: Running, path: str) -> None:
    assert server.client.get(path).status_code == 200


def test_a_token_opens_and_a_wrong_password_does_not(server: Running, anna: dict[str, str]) -> None:
    assert server.client.post("/plain/generate", headers=anna).status_code == 200
    for name, password in (("anna", "wrong horse"), ("nobody", PASSWORD), ("anna", "")):
        answer = server.client.post("/token", data={"username": name, "password": password or "x"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert server.client.post("/token", json={}).status_code == 422


@pytest.mark.parametrize(
    ("claims", "secret"),
    [
        ({"sub": "user:anna", "exp": time.time() - 5}, SECRET),
        ({"sub": "user:anna", "exp": time.time() + 500}, "another secret that is long enough"),
        ({"sub": "user:anna"}, SECRET),
        ({"exp": time.time() + 500}, SECRET),
    ],
)
def test_tokens_that_are_old_forged_or_halves_do_not(server: Running, claims: dict[str, Any], secret: str) -> None:
    answer = server.client.post("/plain/generate", headers=bearer(jwt.encode(claims, secret, "HS256")))
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("value", ["x", "a.b.c", "Ä", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1c2VyOmFubmEiLCJleHAiOjk5OTk5OTk5OTl9."])
def test_what_is_no_token_does_not(server: Running, value: str) -> None:
    headers = {b"Authorization": f"Bearer {value}".encode()}
    assert httpx.post(f"{server.url}/plain/generate", headers=headers).status_code == 401


def test_accounts_are_unique_and_sensible(server: Running, anna: dict[str, str]) -> None:
    for name, password, status in (
        ("anna", PASSWORD, 409),
        ("ANNA", PASSWORD, 409),
        ("a b", PASSWORD, 422),
        ("All", PASSWORD, 422),
        ("\ufdfa" * 20, PASSWORD, 422),
        ("carl", "short", 422),
    ):
        assert server.client.post("/user", json={"username": name, "password": password}).status_code == status


def test_one_renews_ones_own_token(server: Running, anna: dict[str, str], bert: dict[str, str]) -> None:
    renewed = server.client.post("/token/anna", headers=anna)
    assert server.client.post("/plain/generate", headers=bearer(renewed.json()["access_token"])).status_code == 200
    assert server.client.post("/token/anna", headers=bert).status_code == 404
    assert server.client.post("/token/anna").status_code == 401
    assert server.client.post("/token/anna", headers=bearer(API_KEY)).status_code == 200
    assert server.client.post("/token/nobody", headers=bearer(API_KEY)).status_code == 404


def test_an_api_key_is_somebody(server: Running) -> None:
    assert server.client.post("/plain/generate", headers=bearer(API_KEY)).status_code == 200
    assert server.client.post("/plain/generate", headers=bearer(make_key())).status_code == 401


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_anothers_does_not_exist(server: Running, anna: dict[str, str], bert: dict[str, str]) -> None:
    task_id = server.client.post("/task", json={"params_type": "generate"}, headers=anna).json()
    blob_id = server.client.post("/blob", content=picture(), headers=anna).json()
    for path in (f"/task/{task_id}", f"/task/{task_id}/events", f"/blob/{blob_id}"):
        assert server.client.get(path, headers=anna).status_code == 200
        assert server.client.get(path, headers=bert).status_code == 404
        assert server.client.get(path, headers=bearer(API_KEY)).status_code == 404
    assert server.client.delete(f"/task/{task_id}", headers=bert).status_code == 404


def test_public_tokens_are_different_people(server: Running) -> None:
    one, other = (bearer(server.client.post("/token/all").json()["access_token"]) for _ in range(2))
    task_id = server.client.post("/task", json={"params_type": "generate"}, headers=one).json()
    assert server.client.get(f"/task/{task_id}", headers=one).status_code == 200
    assert server.client.get(f"/task/{task_id}", headers=other).status_code == 404


def test_a_page_may_put_its_token_into_the_url(server: Running, anna: dict[str, str]) -> None:
    token = {"token": anna["Authorization"][7:]}
    task_id = server.client.post("/task", json={"params_type": "generate"}, headers=anna).json()
    with server.client.stream("GET", f"/task/{task_id}/events", params=token) as answer:
        assert answer.status_code == 200
    assert server.client.get("/plain/image", params=token | {"seed": "1"}).status_code == 200
    assert server.client.post("/plain/generate", params=token).status_code == 401
    assert server.client.get(f"/task/{task_id}", params=token).status_code == 401


def test_a_socket_tells_of_ones_own_tasks_only(server: Running, anna: dict[str, str], bert: dict[str, str]) -> None:
    address = f"ws{server.url[4:]}/events"
    with connect(f"{address}?since=0&token={bert['Authorization'][7:]}") as socket:
        task_id = server.client.post("/task", json={"params_type": "generate"}, headers=anna).json()
        mine = server.client.post("/task", json={"params_type": "generate"}, headers=bert).json()
        seen = [socket.recv(20) for _ in range(3)]
    assert all(mine in str(event) and task_id not in str(event) for event in seen)
    for query in ("", "?token=x"):
        with pytest.raises(InvalidStatus):
            connect(address + query)


def test_what_is_not_allowed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sign-up nor public tokens, and the development secret, which is kept over a restart."""
    for name in ("SECRET_KEY", "ENABLE_SIGNUP", "ENABLE_PUBLIC_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve(write(tmp_path)) as running:
        assert running.client.post("/token/all").status_code == 403
        assert running.client.post("/user", json={"username": "anna", "password": PASSWORD}).status_code == 403
        assert "SECRET_KEY is not set" in running.log.read_text()
    path = tmp_path / "run" / "development-secret"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "STYLEGAN_TOML": str(write(tmp_path)), "SECRET_KEY": "short"}
    done = subprocess.run([sys.executable, "main.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "SECRET_KEY: found 5 bytes; use at least 32" in done.stderr


def test_the_development_secret_is_one_for_all_workers_and_good_on_loopback_only(tmp_path: Path) -> None:
    one, other = (Tokens(AuthConf(enabled=True), Environment(), tmp_path) for _ in range(2))
    one.open()
    other.open()
    assert other.read(one.give("user:anna")) == "user:anna"
    one.check_place("127.0.0.1", "::1")
    one.check_place(None, None)
    for client, host in (("10.0.0.1", "127.0.0.1"), ("127.0.0.1", "10.0.0.1"), ("x", None)):
        with pytest.raises(Forbidden):
            one.check_place(client, host)
    signed = Tokens(AuthConf(enabled=True), Environment(secret=SECRET), tmp_path)
    signed.check_place("10.0.0.1", "10.0.0.2")
    with pytest.raises(Unauthorized):
        signed.read(one.give("user:anna"))
    assert not is_loopback("example.org")


def test_flags_are_read() -> None:
    assert [read_flag("X", value) for value in (None, "", "0", "False", "no", "1", "TRUE", "yes")] == [False] * 5 + [True] * 3
    with pytest.raises(ConfigError, match="X: found 'maybe'; use 1 or 0"):
        read_flag("X", "maybe")

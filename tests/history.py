"""What the tests of the history share: a server that keeps pictures, and how to ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.checkpoints import tiny_precure
from tests.databases import new_url
from tests.serving import Running, write_config


def write(folder: Path, kind: str = "sqlite", *, store: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A TOML for two tiny networks, with a history in a new database."""
    tiny_precure(folder / "plain.safetensors", levels=3)
    tiny_precure(folder / "classes.safetensors", categories=3, levels=4, seed=1)
    models = {name: {"file": f"{name}.safetensors", "relative": True} for name in ("plain", "classes")}
    url = new_url(kind)
    return write_config(folder, models, store={"history": True, **({"url": url} if url else {}), **(store or {})}, **sections)


def make(server: Running, path: str = "/plain/generate", **options: Any) -> tuple[list[str], httpx.Response]:
    """The kept pictures' ids, and the answer."""
    answer = server.client.post(path, **options)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-image-id"].split(", "), answer


def get(server: Running, path: str, **query: Any) -> Any:
    answer = server.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def found(server: Running, **query: Any) -> list[str]:
    return [image["id"] for image in get(server, "/images", **query)["images"]]


def session_of(server: Running, name: str) -> str:
    """The id of the session of that name, which must have pictures."""
    (session_id,) = [group["id"] for group in get(server, "/sessions", limit=200)["sessions"] if group["name"] == name]
    return str(session_id)

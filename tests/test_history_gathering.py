"""Stars, notes, tags, sessions, collections, and deletions that are undone, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.databases import KINDS
from tests.history import found, get, make, session_of, write
from tests.serving import Running, serve


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(write(tmp_path_factory.mktemp("gathering"), request.param)) as running:
        yield running


def change(server: Running, image_id: str, **values: Any) -> dict[str, Any]:
    answer = server.client.patch(f"/images/{image_id}", json=values)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def send(server: Running, method: str, path: str, status: int, body: Any = None) -> Any:
    answer: httpx.Response = server.client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def test_stars_notes_and_tags_change_one_by_one(server: Running) -> None:
    (image_id,), _ = make(server, headers={"X-Session": "stars"})
    told = get(server, f"/images/{image_id}")
    assert (told["starred"], told["note"], told["tags"]) == (False, None, [])
    assert change(server, image_id, starred=True)["starred"]
    told = change(server, image_id, note="for the cover", tags=["Best  OF", "faces"])
    assert (told["starred"], told["note"], told["tags"]) == (True, "for the cover", ["best of", "faces"])
    told = change(server, image_id, note=None, tags=["faces"], starred=False)
    assert (told["starred"], told["note"], told["tags"]) == (False, None, ["faces"])
    listed = get(server, "/images", session=session_of(server, "stars"))["images"]
    assert [(image["id"], image["tags"]) for image in listed] == [(image_id, ["faces"])]
    assert change(server, image_id, tags=[])["tags"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"starred": 7},
        {"starred": None},
        {"note": "x" * 2001},
        {"starred": True, "tags": ["a\0"]},
        {"tags": ["x" * 65]},
        {"tags": ["t"] * 65},
        {"tag": []},
    ],
)
def test_wrong_changes_are_refused(server: Running, body: Any) -> None:
    (image_id,), _ = make(server)
    send(server, "PATCH", f"/images/{image_id}", 422, body)
    told = get(server, f"/images/{image_id}")
    assert (told["tags"], told["starred"]) == ([], False)


def test_every_filter_finds_what_it_should(server: Running) -> None:
    (first,), _ = make(server, "/plain/generate?seed=1", headers={"X-Session": "filters"})
    (second,), _ = make(server, "/classes/generate?seed=2&label=cat1", headers={"X-Session": "filters"})
    session = session_of(server, "filters")
    change(server, first, starred=True, tags=["red", "blue"])
    change(server, second, tags=["red"])
    box = send(server, "POST", "/collections", 201, {"name": "filtered"})["id"]
    send(server, "POST", f"/collections/{box}/images", 200, {"add": [second]})
    made = get(server, f"/images/{first}")["created"]
    both = [second, first]
    for query, ids in (
        ({}, both),
        ({"model": "plain"}, [first]),
        ({"label": "cat1"}, [second]),
        ({"tag": "RED"}, both),
        ({"tag": ["red", "blue"]}, [first]),
        ({"starred": "true"}, [first]),
        ({"starred": "false"}, [second]),
        ({"collection": box}, [second]),
        ({"since": made}, both),
        ({"until": made}, []),
        ({"text": "nothing"}, []),
        ({"tag": "red", "model": "classes", "starred": "false"}, [second]),
    ):
        assert found(server, session=session, **query) == ids, query


def test_a_deleted_picture_is_gone_and_comes_back_as_it_was(server: Running) -> None:
    (parent, image_id), _ = make(server, "/plain/generate?count=2", headers={"X-Session": "trash"})
    (child,), _ = make(server, headers={"X-Parents": image_id})
    change(server, image_id, starred=True, note="keep me", tags=["trashed"])
    box = send(server, "POST", "/collections", 201, {"name": "trash box"})["id"]
    send(server, "POST", f"/collections/{box}/images", 200, {"add": [image_id, parent]})
    before, session = get(server, f"/images/{image_id}"), session_of(server, "trash")
    send(server, "DELETE", f"/images/{image_id}", 204)
    for method, rest in (("GET", ""), ("GET", "/file"), ("GET", "/thumbnail"), ("PATCH", ""), ("DELETE", ""), ("POST", "/regenerate")):
        send(server, method, f"/images/{image_id}{rest}", 404, {} if method == "PATCH" else None)
    assert found(server, session=session) == found(server, collection=box) == [parent]
    assert found(server, tag="trashed") == []
    assert "trashed" not in [tag["name"] for tag in get(server, "/tags")]
    assert (get(server, f"/collections/{box}")["images"], get(server, f"/sessions/{session}")["images"]) == (1, 1)
    assert get(server, f"/images/{child}")["parents"] == []
    assert send(server, "POST", f"/images/{image_id}/restore", 200) == before
    assert (found(server, session=session), found(server, tag="trashed")) == ([image_id, parent], [image_id])
    assert get(server, f"/images/{child}")["parents"] == [image_id]
    send(server, "POST", f"/images/{image_id}/restore", 404)


def test_sessions(server: Running) -> None:
    one, two = (send(server, "POST", "/sessions", 201, {"name": name}) for name in ("first", "second"))
    assert (one["name"], one["images"]) == ("first", 0)
    (image_id,), _ = make(server, headers={"X-Session": one["id"]})
    assert send(server, "PATCH", f"/sessions/{one['id']}", 200, {"name": "uno"})["name"] == "uno"
    page = get(server, "/sessions", limit=1)
    assert [group["id"] for group in page["sessions"]] == [two["id"]]
    assert get(server, "/sessions", limit=1, cursor=page["next"])["sessions"][0] == get(server, f"/sessions/{one['id']}")
    assert [image["id"] for image in get(server, f"/sessions/{one['id']}/images")["images"]] == [image_id]
    send(server, "DELETE", f"/sessions/{one['id']}", 204)
    for method, rest in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/images")):
        send(server, method, f"/sessions/{one['id']}{rest}", 404, {"name": "x"})
    assert get(server, f"/images/{image_id}")["session"] is None


def test_collections(server: Running) -> None:
    ids, _ = make(server, "/plain/generate?count=3")
    box = send(server, "POST", "/collections", 201, {"name": "cats"})["id"]
    other = send(server, "POST", "/collections", 201, {"name": "dogs"})["id"]
    send(server, "POST", "/collections", 409, {"name": "cats"})
    send(server, "PATCH", f"/collections/{other}", 409, {"name": "cats"})
    send(server, "POST", "/collections", 422, {"name": "\0"})
    assert send(server, "POST", f"/collections/{box}/images", 200, {"add": ids})["images"] == 3
    assert send(server, "POST", f"/collections/{box}/images", 200, {"add": [ids[0]], "remove": [ids[1]]})["images"] == 2
    assert [image["id"] for image in get(server, f"/collections/{box}/images")["images"]] == [ids[2], ids[0]]
    assert get(server, f"/images/{ids[0]}")["collections"] == [box]
    send(server, "POST", f"/collections/{box}/images", 404, {"add": ["0" * 32]})
    send(server, "POST", f"/collections/{box}/images", 404, {"add": ids, "remove": ["0" * 32]})
    assert get(server, f"/images/{ids[1]}")["collections"] == []
    send(server, "POST", f"/collections/{box}/images", 422, {"add": ids * 400})
    send(server, "DELETE", f"/collections/{box}", 204)
    for method, rest in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/images"), ("POST", "/images")):
        send(server, method, f"/collections/{box}{rest}", 404, {"name": "x"} if method == "PATCH" else {})


def test_tags(server: Running) -> None:
    ids, _ = make(server, "/plain/generate?count=2")
    counted = send(server, "POST", "/tags/a%2Fb/images", 200, {"add": ids})
    assert {"name": "a/b", "images": 2} in counted
    assert [image["id"] for image in get(server, "/tags/A%2Fb/images")["images"]] == ids[::-1]
    assert {"name": "a/b", "images": 1} in send(server, "POST", "/tags/a%2Fb/images", 200, {"remove": ids[:1]})
    assert {"name": "new", "images": 1} in send(server, "PATCH", "/tags/a%2Fb", 200, {"name": "New"})
    send(server, "POST", "/tags/other/images", 200, {"add": ids})
    send(server, "PATCH", "/tags/new", 409, {"name": "other"})
    send(server, "DELETE", "/tags/new", 204)
    assert get(server, f"/images/{ids[1]}")["tags"] == ["other"]
    send(server, "POST", "/tags/other/images", 200, {"remove": ids})
    assert "other" not in [tag["name"] for tag in get(server, "/tags")]
    for method, body in (("DELETE", None), ("PATCH", {"name": "x"})):
        send(server, method, "/tags/never", 404, body)
    send(server, "POST", f"/tags/{'x' * 65}/images", 422, {"add": ids})


@pytest.mark.parametrize(
    "query",
    [
        "cursor=x",
        "cursor=-1",
        "cursor=" + "9" * 19,
        "limit=0",
        "limit=201",
        "since=nan",
        "until=-1",
        "tag=%00",
        "starred=maybe",
        "tag=a&" * 9,
    ],
)
def test_wrong_searches_are_refused(server: Running, query: str) -> None:
    for path in ("/images", "/images/export"):
        if path == "/images" or not query.startswith(("cursor", "limit")):
            assert server.client.get(f"{path}?{query}").status_code == 422, path

"""What handlers are made of: the server, the caller, the model of the path, and the format that the client wants."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, Header, Path, Request, Response
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from api.auth import KEY, PUBLIC
from api.engine.codec import MIME_TYPES, Encoding, Format
from api.engine.wire import Picture
from api.errors import BadInput, NotAcceptable, ServerError, Unauthorized
from api.limits.client import identify
from api.models.base import Info
from api.routes.accept import choose
from api.schemas.images import Image
from api.server import EVERYBODY, Answer, Caller, Server
from api.store.keys import find_key

JSON = "application/json"
SCHEME = OAuth2PasswordBearer("token", auto_error=False)
BARE = re.compile(r"^/blob/|^/(txt2img|img2img|inpaint)$|/(events|image)$|^/images/([^/]+/(file|thumbnail)|export)$")
MOST_PARENTS = 16
TYPES: dict[str, Format] = {mime_type: name for name, mime_type in MIME_TYPES.items()}


async def get_server(request: Request) -> Server:
    server: Server = request.state.server
    return server


def identify_owner(connection: HTTPConnection) -> str:
    """Whom the caller's tasks and blobs belong to. Raises ``Unauthorized``, ``Forbidden``."""
    server: Server = connection.state.server
    conf, tokens = server.config.auth, server.tokens
    if not conf.enabled:
        return EVERYBODY
    credential = read_bearer(connection)
    if (name := find_key(credential, conf.api_keys)) is not None:
        return KEY + name
    tokens.check_place(connection.client.host if connection.client else None, (connection.scope.get("server") or (None,))[0])
    subject = tokens.read(credential)
    if subject.startswith(PUBLIC) and not tokens.public:
        raise Unauthorized("public tokens are not taken any more")
    return subject


def read_bearer(connection: HTTPConnection) -> str:
    """The token in the header, or in the URL where a page cannot set headers: WebSocket, EventSource, `<img>`."""
    scheme, _, credential = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    scope = connection.scope
    bare = scope["type"] == "websocket" or (scope["method"] == "GET" and BARE.search(scope["path"]))
    if bare and (credential := connection.query_params.get("token", "")):
        return credential
    raise Unauthorized()


async def get_owner(request: Request, _: Annotated[str | None, Depends(SCHEME)]) -> str:
    return identify_owner(request)


async def get_caller(
    request: Request,
    server: Annotated[Server, Depends(get_server)],
    owner: Annotated[str, Depends(get_owner)],
    x_session: Annotated[
        str | None, Header(max_length=1000, description="For the history: a session's id or name, percent-encoded")
    ] = None,
    x_parents: Annotated[
        str | None, Header(max_length=1000, description="For the history: ids of pictures that this one is made from")
    ] = None,
) -> Caller:
    """The client's address as far as it is known and trusted, a way to see it leave, and what the history is to note."""
    peer = request.client.host if request.client else None

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return Caller(
        identify(peer, request.headers.raw, server.config.server.http),
        gone,
        owner if server.config.auth.enabled else None,
        session=read_session(x_session, request.cookies),
        parents=read_parents(x_parents or ""),
        line=request.scope.get("extensions", {}).get("line", {}).get("client"),
    )


def read_session(header: str | None, cookies: Mapping[str, str]) -> str | None:
    """A session's id or name; a cookie that cannot be one is none."""
    if header:
        return unquote(header)
    if not (cookie := cookies.get("session")):
        return None
    name = unquote(cookie).strip()
    return name if name.isprintable() and 1 <= len(name) <= 200 else None


def read_parents(text: str) -> list[str]:
    """Raises ``BadInput``."""
    if not text:
        return []
    found = list(dict.fromkeys(filter(None, re.split(r"[,\s]+", text))))
    if len(found) > MOST_PARENTS:
        raise BadInput(f"found {len(found)} parents; a picture has at most {MOST_PARENTS}")
    return found


async def get_info(server: Annotated[Server, Depends(get_server)], model_id: Annotated[str, Path(min_length=1)]) -> Info:
    return await server.info(model_id)


async def find_model(server: Server, model_id: str | None, kind: str) -> Info:
    """The model that a client named, or the first that can do a ``kind`` of job. Raises ``NoSuchModel``, ``BadInput``."""
    if model_id is not None:
        info = await server.info(model_id)
        if kind not in info.kinds:
            able = [name for name in server.serving() if kind in (await server.info(name)).kinds]
            raise BadInput(f"the model {model_id!r} cannot do this; choose of {', '.join(able) or 'none: no model here can'}")
        return info
    for name in server.serving():
        if kind in (info := await server.info(name)).kinds:
            return info
    raise BadInput("no model of this server can do this")


TheServer = Annotated[Server, Depends(get_server)]
TheOwner = Annotated[str, Depends(get_owner)]
TheCaller = Annotated[Caller, Depends(get_caller)]
TheInfo = Annotated[Info, Depends(get_info)]


class Detail(BaseModel):
    detail: Any


def responses(*errors: type[ServerError], model: type[BaseModel] = Detail) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a route's errors; ``model`` is the form in which they are told."""
    found: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        text = str(error.default if isinstance(error.default, str) else error.__doc__)
        known = found.setdefault(error.status, {"model": model, "description": ""})
        known["description"] = "; ".join(filter(None, [known["description"], text]))
        if error.status in (429, 503):
            known["headers"] = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}}
    return found


PICTURE: dict[str, Any] = {mime: {"schema": {"type": "string", "format": "binary"}} for mime in MIME_TYPES.values()}


def negotiate(request: Request, info: Info) -> tuple[str, Encoding]:
    """The answer's type, JSON if the client does not mind, and the encoding of the pictures in it."""
    own = own_format(info)
    chosen = choose_type(request, [JSON, MIME_TYPES[own]])
    return chosen, Encoding(TYPES.get(chosen, own))


def own_format(info: Info) -> Format:
    """What a model's pictures are encoded as when nobody chooses."""
    return "jpeg" if info.lossy else "png"


def choose_type(request: Request, first: Sequence[str]) -> str:
    """The type that the client likes best of ``first`` and all picture types. Raises ``NotAcceptable``."""
    offers = tuple(dict.fromkeys([*first, *MIME_TYPES.values()]))
    chosen = choose(tuple(request.headers.getlist("accept")), offers)
    if chosen is None:
        raise NotAcceptable(f"this route answers {', '.join(offers)}")
    return chosen


def known_etags(request: Request) -> set[str]:
    """The tags that the client has; a weak comparison is what If-None-Match asks for (RFC 9110, 13.1.2)."""
    listed = ",".join(request.headers.getlist("if-none-match"))
    return {tag.strip().removeprefix("W/") for tag in listed.split(",")}


def answer(chosen: str, cls: type[Image], info: Info, result: Answer, recipes: Sequence[dict[str, Any]]) -> Response:
    """The response in the form that was negotiated."""
    headers = {"Vary": "Accept", **result.headers}
    if chosen == JSON:
        body = cls.of(info.id, result.pictures).model_dump_json().encode()
        return Response(body, media_type=JSON, headers=headers)
    (picture,), (recipe,) = result.pictures, recipes
    return Response(picture.data, media_type=picture.mime_type, headers=headers | recipe_headers(picture, recipe))


def recipe_headers(picture: Picture, recipe: dict[str, Any]) -> dict[str, str]:
    told = recipe | ({"Label": picture.label} if picture.label is not None else {})
    return {"X-Seed": str(picture.seed), "X-Recipe": json.dumps(told)}


def one_for_bytes(chosen: str, count: int) -> None:
    """A bare picture is one picture."""
    if chosen != JSON and count != 1:
        raise BadInput(f"count is {count}, but a bare picture is one; ask for application/json or count=1")

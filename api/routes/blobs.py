"""Pictures that are kept: what clients send for tasks to start from, and what tasks make."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api import errors
from api.engine.codec import MOTION_TYPES, decode_picture
from api.engine.codec.containers import sniff
from api.errors import BadInput, Busy, TooLarge, Undecodable
from api.routes.parts import TheOwner, TheServer, known_etags, responses
from api.server import Server

if TYPE_CHECKING:
    from api.store.blobs import Blob

log = logging.getLogger(__name__)
router = APIRouter(tags=["blobs"])
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
FORM: dict[str, Any] = {"schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY["schema"]}}}


@router.post(
    "/blob",
    operation_id="create_blob",
    status_code=201,
    response_model=str,
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": FORM, **dict.fromkeys(TYPES.values(), BINARY)}}},
    responses={
        201: {"description": "The blob's id", "headers": {"Location": {"schema": {"type": "string"}}}},
        **responses(errors.Undecodable, errors.TooLarge, errors.BadInput, errors.Unauthorized, errors.Busy),
    },
)
async def create_blob(request: Request, server: TheServer, owner: TheOwner) -> Response:
    """Keeps a picture for a while: PNG, JPEG or WebP, as the body or as a form's file."""
    data = await read_upload(request)
    kind = await check_picture(server, data)
    store = await server.store()
    blob = await store.blobs.create(owner, kind, data, seconds=server.config.blobs.expire or None)
    return JSONResponse(blob.id, 201, {"Location": f"/blob/{blob.id}"})


async def read_upload(request: Request) -> bytes:
    """The body, or the first file of a form. Raises ``BadInput``."""
    try:
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return await request.body()
        async with request.form(max_files=1, max_fields=16) as form:
            for value in form.values():
                if isinstance(value, UploadFile):
                    return await value.read()
    except HTTPException as error:
        raise BadInput(f"the form cannot be read: {error.detail}") from None
    except ClientDisconnect:
        raise BadInput("the body ended early") from None
    except UnicodeError:  # of the form's own charset
        raise BadInput("the form cannot be read: its charset does not decode it") from None
    except OSError as error:  # large files of forms lie on the disk meanwhile
        log.error("an upload cannot be kept: %s", error)
        raise Busy("there is no room for uploads") from error
    raise BadInput("the form has no file; send one as the field 'file'")


async def check_picture(server: Server, data: bytes) -> str:
    """The picture's media type. Raises ``TooLarge``, ``Undecodable``."""
    conf = server.config.blobs
    if len(data) > conf.max_size:
        raise TooLarge(f"found {len(data)} bytes; send at most {conf.max_size}")
    await asyncio.to_thread(decode_picture, data, max_pixels=conf.max_pixels)
    name = sniff(data)
    if name not in TYPES:
        raise Undecodable()
    return TYPES[name]


@router.get(
    "/blob/{blob_id}",
    operation_id="blob",
    response_class=Response,
    responses={
        200: {"content": dict.fromkeys([*TYPES.values(), *MOTION_TYPES.values()], BINARY), "description": "The picture"},
        206: {"description": "The part that `Range` asked for"},
        304: {"description": "The client has it"},
        416: {"description": "The blob has no such part"},
        **responses(errors.NoSuchBlob, errors.Unauthorized),
    },
)
async def get_blob(
    request: Request,
    server: TheServer,
    owner: TheOwner,
    blob_id: str,
    range: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    store = await server.store()
    blob = await store.blobs.get(blob_id, owner)
    headers = {
        "ETag": f'"{blob.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if known_etags(request) & {headers["ETag"], "*"}:
        return Response(status_code=304, headers=headers)
    part = read_range(range, blob) if if_range in (None, headers["ETag"]) else None
    if part == (0, 0):
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{blob.size}"})
    start, stop = part or (0, blob.size)
    headers["Content-Length"] = str(stop - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    return StreamingResponse(store.blobs.stream(blob, start, stop), 206 if part else 200, headers, blob.type)


def read_range(header: str | None, blob: Blob) -> tuple[int, int] | None:
    """The one range that is asked for, (0, 0) if the blob has none of it; ``None`` for anything else (RFC 9110, 14.2)."""
    match = RANGE.fullmatch((header or "").strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, stop = max(0, blob.size - int(match[2])), blob.size
    else:
        start, stop = int(match[1]), min(blob.size, int(match[2] or blob.size) + 1)
    if match[1] and match[2] and int(match[2]) < start:
        return None
    return (start, stop) if start < stop else (0, 0)

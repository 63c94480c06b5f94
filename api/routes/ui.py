"""The studio: the built pages of `api/ui`, and what they must know of the server before they ask for anything."""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from api.routes.parts import TheServer, known_etags

router = APIRouter(tags=["studio"])
DIST = Path(__file__).resolve().parents[1] / "ui" / "dist"
HASHED = re.compile(r"^assets/.+-[\w-]{8}\.\w+$")
"""Files whose names change with their content."""
TEXTS = (".html", ".js", ".css", ".svg", ".webmanifest", ".txt")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Studio(BaseModel):
    title: str = Field(description="The server's, from its TOML")
    version: str
    auth: bool = Field(description="Whether a token is asked for")
    signup: bool = Field(description="Whether anybody may make an account")
    public: bool = Field(description="Whether anybody may have a token without an account")
    maxPrompt: int = Field(description="Characters of a prompt")
    maxUpload: int = Field(description="Bytes of a picture")
    history: bool = Field(description="Whether the pictures that are made are kept, to be found again")


@dataclass(frozen=True, slots=True)
class Page:
    """A built file, as it is sent."""

    type: str
    plain: bytes
    packed: bytes | None
    etag: str
    caching: str


@router.get("/ui/server", operation_id="studio")
async def studio(server: TheServer) -> Studio:
    """What the studio shows before anybody has signed in."""
    conf, tokens = server.config, server.tokens
    return Studio(
        title=conf.title,
        version=conf.version,
        auth=conf.auth.enabled,
        signup=conf.auth.enabled and tokens.signup,
        public=conf.auth.enabled and tokens.public,
        maxPrompt=conf.prompts.max_length,
        maxUpload=conf.blobs.max_size,
        history=conf.store.history,
    )


@router.api_route("/ui", methods=["GET", "HEAD"], include_in_schema=False)
async def ui() -> Response:
    return RedirectResponse("ui/", 307)


@router.api_route("/ui/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
async def page(request: Request, path: str) -> Response:
    """A file of the studio. Those with a hash in their name never change; the others are asked for again each time."""
    pages = await asyncio.to_thread(read_pages)
    if (found := pages.get(path or "index.html")) is None:
        raise HTTPException(404)
    headers = HEADERS | {"ETag": found.etag, "Cache-Control": found.caching, "Vary": "Accept-Encoding"}
    if known_etags(request) & {found.etag, "*"}:
        return Response(status_code=304, headers=headers)
    if found.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.packed, media_type=found.type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(found.plain, media_type=found.type, headers=headers)


@functools.cache
def read_pages(folder: Path = DIST) -> dict[str, Page]:
    """All files by their paths. They are read once and no path of a client is ever opened."""
    return {path.relative_to(folder).as_posix(): read_page(folder, path) for path in folder.rglob("*") if path.is_file()}


def read_page(folder: Path, path: Path) -> Page:
    plain = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    kind = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Page(
        type=kind,
        plain=plain,
        packed=gzip.compress(plain, 9, mtime=0) if path.suffix in TEXTS else None,
        etag=f'"{hashlib.sha256(plain).hexdigest()[:32]}"',
        caching="public, max-age=31536000, immutable" if HASHED.match(name) else "no-cache",
    )

"""What the server is and which models it has."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import RedirectResponse

from api.errors import NotReady
from api.routes.parts import TheServer, responses
from api.schemas.models import Model

router = APIRouter(tags=["info"])


@router.get("/", operation_id="root", response_model=str)
async def root(accept: Annotated[str, Header(include_in_schema=False)] = "") -> str | Response:
    """Says hello; a browser is sent to the studio."""
    if "text/html" in accept:
        return RedirectResponse("ui/", 307, {"Vary": "Accept"})
    return "Hello"


@router.get("/version", operation_id="version")
async def version(server: TheServer) -> str:
    return server.config.version


@router.get("/models/", operation_id="models", responses=responses(NotReady))
async def models(server: TheServer) -> list[Model]:
    """The models, each with a picture it made."""
    serving = [model_id for model_id in server.config.models if model_id not in server.engine(model_id).failures]
    return [Model.of(*pair) for pair in await asyncio.gather(*map(server.example, serving))]

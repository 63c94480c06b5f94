"""For those who run the server."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from api.routes.parts import TheServer

router = APIRouter(tags=["operations"])


class Readiness(BaseModel):
    status: str
    models: dict[str, str]


@router.get("/healthz", operation_id="healthz")
async def healthz() -> str:
    """The process answers."""
    return "ok"


@router.get("/readyz", operation_id="readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(server: TheServer) -> Response:
    """Whether every model can be served, and if not, why."""
    states = server.states()
    ready = all(state == "ready" for state in states.values())
    body = Readiness(status="ready" if ready else "not ready", models=states)
    return JSONResponse(body.model_dump(), 200 if ready else 503, None if ready else {"Retry-After": "1"})


@router.get("/metrics", operation_id="metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(server: TheServer) -> Response:
    """Prometheus' text format, over all processes of this host."""
    ready = {model_id: state == "ready" for model_id, state in server.states().items()}
    server.book.write()
    text = await asyncio.to_thread(server.telemetry.expose, ready)
    return Response(text, media_type="text/plain; version=0.0.4")

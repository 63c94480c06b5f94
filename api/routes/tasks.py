"""Work that outlives its request: tasks and the events that tell what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, StreamingResponse

from api import errors
from api.errors import Busy, ServerError
from api.history.origin import Origin
from api.routes.diffusion import check_prompts
from api.routes.parts import TheCaller, TheOwner, TheServer, find_model, identify_owner, responses
from api.schemas.tasks import AnyTask, Event
from api.server import RESTART, Server
from api.tasks import load_pictures

if TYPE_CHECKING:
    from api.store.events import Event as Stored
    from api.store.feed import Stream
    from api.store.transitions import Task

router = APIRouter(tags=["tasks"])
SILENCE = 15.0
"""Seconds after which an idle stream says that it is alive; proxies close what is silent for a minute."""


@router.post(
    "/task",
    operation_id="create_task",
    status_code=201,
    response_model=str,
    responses={
        201: {"description": "The task's id", "headers": {"Location": {"schema": {"type": "string"}}}},
        **responses(errors.NoSuchModel, errors.NoSuchBlob, errors.Conflict, errors.Unauthorized, errors.RateLimited, errors.Busy),
    },
)
async def create_task(
    server: TheServer,
    caller: TheCaller,
    owner: TheOwner,
    params: Annotated[AnyTask, Body()],
    idempotency_key: Annotated[str | None, Header(description="The same key always means the same task")] = None,
) -> Response:
    """Stores a task; it is computed when its turn comes, whatever becomes of this connection."""
    check_prompts(server, params)
    info = await find_model(server, params.model, params.kind)
    params = params.fixed(info, None if idempotency_key is None else f"{owner} {idempotency_key}")
    if server.config.store.history:
        params = params.remembering(caller.session, caller.parents)
        await server.check_origin(Origin(owner, params.session, params.parents or ()))
    store = await server.store()
    params.work(info, await load_pictures(server, store, params.blobs, owner))  # so that what is wrong is told now
    async with server.limits.admit(caller.address) as admission:
        for blob_id in params.blobs.values():
            await store.blobs.extend(blob_id, server.config.blobs.expire or None)
        told = params.model_dump(mode="json", exclude_none=True)
        try:
            task = await store.tasks.create(owner, params.params_type, told, idempotency_key, params.blobs.values())
        except (errors.BadInput, errors.NotFound, errors.Conflict):
            await admission.refund()
            raise
    return JSONResponse(task.id, 201, {"Location": f"/task/{task.id}", **admission.headers()})


@router.get("/task/{task_id}", operation_id="task", response_model=Event, responses=responses(errors.NoSuchTask, errors.Unauthorized))
async def get_task(server: TheServer, owner: TheOwner, task_id: str) -> Response:
    """The task's last event; of a waiting one, its place in the queue now."""
    store = await server.store()
    task = await store.tasks.get(task_id, owner)
    event = await store.events.last(task.id)
    if event is None:  # swept in this moment
        raise errors.NoSuchTask(task_id)
    now: dict[str, Any] = {}
    if event.kind == "pending":
        place = await store.tasks.place(task)
        now = {"position": place.position, "wait": place.wait}
    return JSONResponse(tell(event) | now)


@router.delete("/task/{task_id}", operation_id="cancel_task", status_code=204, responses=responses(errors.NoSuchTask, errors.Unauthorized))
async def cancel_task(server: TheServer, owner: TheOwner, task_id: str) -> None:
    """Cancels a task that waits or runs; one that has ended stays as it is."""
    await (await server.store()).tasks.cancel(task_id, owner)


@router.get(
    "/task/{task_id}/events",
    operation_id="task_events",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The task's events, up to its last one"},
        204: {"description": "The client has seen the last one"},
        **responses(errors.NoSuchTask, errors.Unauthorized),
    },
)
async def task_events(
    server: TheServer,
    owner: TheOwner,
    task_id: str,
    since: Annotated[int, Query(ge=0, lt=2**31, description="The number of the last event that is known")] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31, description="The same, as browsers send it when they reconnect")] = None,
) -> Response:
    """Server-sent events: those that were and those to come, numbered from 1."""
    task = await (await server.store()).tasks.get(task_id, owner)
    since = since if last_event_id is None else last_event_id
    if is_over(task) and since >= task.events:
        return Response(status_code=204)  # what keeps a browser from connecting again
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(write_events(server, task, since), media_type="text/event-stream", headers=headers)


async def write_events(server: Server, task: Task, since: int) -> AsyncIterator[str]:
    """Ends before the last event where the database cannot be asked: clients come back for the rest."""
    yield "retry: 1000\n\n"
    with contextlib.suppress(Busy):
        async with follow(server, (await server.store()).events.follow(task.id, since)) as stream:
            while not stream.over:
                for event in (events := await stream.take(SILENCE)):
                    yield f"id: {event.number}\nevent: {event.kind}\ndata: {json.dumps(tell(event))}\n\n"
                if not events and not stream.over:
                    yield ": \n\n"


@router.websocket("/events")
async def all_events(websocket: WebSocket, since: Annotated[int | None, Query(ge=0, le=2**62)] = None) -> None:
    """All events of the user's tasks; ``since`` is the ``id`` of the last one that is known, without it only new ones are sent."""
    server: Server = websocket.state.server
    async with contextlib.AsyncExitStack() as stack:
        try:
            owner = identify_owner(websocket)
            events = (await server.store()).events
            stream = await stack.enter_async_context(follow(server, events.follow_owner(owner, since)))
        except ServerError as error:
            await websocket.close(1008, str(error.detail)[:120])  # before accepting: the client sees 403
            return
        await websocket.accept()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send_events(websocket, stream))
            await leaving(websocket)
            sending.cancel()


async def send_events(websocket: WebSocket, stream: Stream[Stored]) -> None:
    with contextlib.suppress(WebSocketDisconnect, Busy):
        while not stream.over:
            for event in await stream.take():
                await websocket.send_json(tell(event))
    with contextlib.suppress(RuntimeError):  # it may have been closed
        await websocket.close(RESTART)


async def leaving(websocket: WebSocket) -> None:
    """Returns when the client has left; what it says is ignored."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


@contextlib.asynccontextmanager
async def follow(server: Server, stream: Stream[Stored]) -> AsyncIterator[Stream[Stored]]:
    """The stream, which ends when the server wants to."""
    async with stream:
        with server.following(stream):
            yield stream


def is_over(task: Task) -> bool:
    return task.state in ("finished", "cancelled", "failed")


def tell(event: Stored) -> dict[str, Any]:
    whole = {"event_type": event.kind, "task_id": event.task_id, "id": event.id, "number": event.number, "created": event.created}
    return whole | dict(event.data)

"""Pictures moved along directions, and walks between them."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request, Response

from api import errors
from api.engine.codec import MOTION_TYPES, Encoding, Motion
from api.engine.wire import Picture
from api.models.base import Info
from api.routes.accept import choose
from api.routes.generation import LIMITS
from api.routes.parts import JSON, PICTURE, TheCaller, TheInfo, TheServer, answer, negotiate, recipe_headers, responses
from api.schemas.editing import Direction, EditedImage, EditRequestBody, edit_recipe
from api.schemas.walks import Animation, InterpolateRequestBody, Walk
from api.server import Answer, Caller, Server

router = APIRouter(tags=["editing"])
MOTIONS: dict[str, Any] = {mime: {"schema": {"type": "string", "format": "binary"}} for mime in MOTION_TYPES.values()}
FAULTS = (errors.NoSuchModel, errors.NoSuchLabel, errors.Undecodable, errors.NotAcceptable, errors.TooLarge, *LIMITS)


@router.get("/{model_id}/directions", operation_id="directions", responses=responses(errors.NoSuchModel, errors.NotReady))
async def directions(info: TheInfo) -> list[Direction]:
    """What `edit` can move this model's pictures along: the configured ones, then those found in the checkpoint, the strongest first."""
    return [Direction.model_validate(told) for told in info.extra.get("directions", ())]


@router.post(
    "/{model_id}/edit",
    operation_id="edit",
    response_model=EditedImage,
    responses={200: {"content": PICTURE}, **responses(errors.NoSuchDirection, *FAULTS)},
)
async def edit(request: Request, server: TheServer, caller: TheCaller, info: TheInfo, body: EditRequestBody) -> Response:
    """Moves the picture of a seed, a latent or styles along directions. The answer's `styles`, with its seed, are where to go on from."""
    chosen, encoding = negotiate(request, info)
    job = body.job(info)
    recipe = edit_recipe(info, job)
    result = await server.compute(caller, [job], encoding, [recipe])
    return answer(chosen, EditedImage, info, result, [recipe])


@router.post(
    "/{model_id}/interpolate",
    operation_id="interpolate",
    response_model=Animation,
    responses={200: {"content": MOTIONS}, **responses(*FAULTS)},
)
async def interpolate(request: Request, server: TheServer, caller: TheCaller, info: TheInfo, body: InterpolateRequestBody) -> Response:
    """An animated walk: spherical between the latents of seeds or given ones, linear between styles, cubic through a closed loop."""
    mime_type, kind = choose_motion(request, body.format)
    await server.check_origin(caller.origin)
    made = body.walk(info, kind)
    result, animation = await walk(server, caller, made)
    _, header = await server.record(caller.origin, [made.entry(animation, result.pictures[0].data)])
    headers = {"Vary": "Accept", **result.headers, **header}
    if mime_type == JSON:
        return Response(tell(info, body, animation), media_type=JSON, headers=headers)
    return Response(animation.data, media_type=mime_type, headers=headers | recipe_headers(animation, dict(made.recipe)))


async def walk(server: Server, caller: Caller, made: Walk) -> tuple[Answer, Picture]:
    """The frames and the animation. The history keeps the whole, not the frames."""
    result = await server.compute(caller, made.jobs, Encoding("png"), [{}] * len(made.jobs), keep=False)
    return result, await asyncio.to_thread(made.animate, result.pictures)


def choose_motion(request: Request, preferred: Motion) -> tuple[str, Motion]:
    """The answer's type, JSON if the client does not mind, and the kind of animation in it. Raises ``NotAcceptable``."""
    offers = list(dict.fromkeys([JSON, MOTION_TYPES[preferred], *MOTION_TYPES.values()]))
    chosen = choose(tuple(request.headers.getlist("accept")), tuple(offers))
    if chosen is None:
        raise errors.NotAcceptable(f"this route answers {', '.join(offers)}")
    return chosen, next((kind for kind, mime_type in MOTION_TYPES.items() if mime_type == chosen), preferred)


def tell(info: Info, body: InterpolateRequestBody, animation: Picture) -> bytes:
    told = Animation(
        model=info.id,
        width=animation.width,
        height=animation.height,
        mimeType=animation.mime_type,
        data=base64.b64encode(animation.data).decode(),
        frames=body.frames,
        fps=body.fps,
        seed=animation.seed,
        label=animation.label,
    )
    return told.model_dump_json().encode()

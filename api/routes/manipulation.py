"""Pictures from styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api import errors
from api.models.base import Info
from api.models.jobs import Synthesize
from api.routes.generation import LIMITS
from api.routes.parts import PICTURE, TheCaller, TheInfo, TheServer, answer, negotiate, one_for_bytes, responses
from api.schemas.images import CompoundImage, Image, SimpleImage
from api.schemas.recipes import synthesize_recipe
from api.schemas.requests import BlendQuery, MixQuery, ReconstructionRequestBody
from api.server import Caller, Server

router = APIRouter(
    tags=["manipulation"],
    responses={
        200: {"content": PICTURE},
        **responses(errors.NoSuchModel, errors.Undecodable, errors.NotAcceptable, errors.TooLarge, *LIMITS),
    },
)


async def render(request: Request, server: Server, caller: Caller, info: Info, jobs: Sequence[Synthesize], cls: type[Image]) -> Response:
    chosen, encoding = negotiate(request, info)
    one_for_bytes(chosen, len(jobs))
    recipes = [synthesize_recipe(info, job) for job in jobs]
    result = await server.compute(caller, jobs, encoding, recipes)
    return answer(chosen, cls, info, result, recipes)


@router.post("/{model_id}/blend", operation_id="blend", response_model=SimpleImage)
async def blend(
    request: Request,
    server: TheServer,
    caller: TheCaller,
    info: TheInfo,
    query: Annotated[BlendQuery, Query()],
    body: ReconstructionRequestBody,
) -> Response:
    """Renders the weighted mean of styles; a single one is rendered exactly."""
    return await render(request, server, caller, info, query.jobs(info, body.arrays(info)), SimpleImage)


@router.post("/{model_id}/mix", operation_id="mix", response_model=CompoundImage)
async def mix(
    request: Request,
    server: TheServer,
    caller: TheCaller,
    info: TheInfo,
    query: Annotated[MixQuery, Query()],
    body: ReconstructionRequestBody,
) -> Response:
    """Renders one style per level: coarse features from the first, fine ones from the last."""
    return await render(request, server, caller, info, query.jobs(info, body.arrays(info)), CompoundImage)

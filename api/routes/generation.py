"""Pictures from latents."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from api import errors
from api.engine.codec import MIME_TYPES, Encoding, Format
from api.models.base import Info
from api.routes.parts import (
    PICTURE,
    TYPES,
    TheCaller,
    TheInfo,
    TheServer,
    answer,
    choose_type,
    known_etags,
    negotiate,
    one_for_bytes,
    own_format,
    recipe_headers,
    responses,
)
from api.schemas.images import SimplePureImage
from api.schemas.recipes import generate_recipe
from api.schemas.requests import GenerateQuery, GenerateRequestBody

router = APIRouter(tags=["generation"])
LIMITS = (errors.Blocked, errors.RateLimited, errors.NoAddress, errors.Busy, errors.NotReady, errors.Expired)
FOREVER = "public, max-age=31536000, immutable"


@router.post(
    "/{model_id}/generate",
    operation_id="generate",
    response_model=SimplePureImage,
    responses={
        200: {"content": PICTURE},
        **responses(errors.NoSuchModel, errors.NoSuchLabel, errors.Undecodable, errors.NotAcceptable, errors.TooLarge, *LIMITS),
    },
)
async def generate(
    request: Request,
    server: TheServer,
    caller: TheCaller,
    info: TheInfo,
    query: Annotated[GenerateQuery, Query()],
    body: GenerateRequestBody | None = None,
) -> Response:
    """Draws a latent around `latent`, maps it to a style, truncates that by `psi`, and renders it."""
    chosen, encoding = negotiate(request, info)
    one_for_bytes(chosen, query.count)
    jobs = query.jobs(info, body.latent if body else None)
    recipes = [generate_recipe(info, job) for job in jobs]
    result = await server.compute(caller, jobs, encoding, recipes)
    return answer(chosen, SimplePureImage, info, result, recipes)


class ImageQuery(GenerateQuery):
    count: int = Query(1, ge=1, le=1, include_in_schema=False)
    format: Format | None = Query(None, description="Instead of negotiating by the Accept header")


@router.get(
    "/{model_id}/image",
    operation_id="image",
    response_class=Response,
    responses={
        200: {"content": PICTURE, "description": "The picture; the same URL always answers the same bytes"},
        304: {"description": "The client has it"},
        307: {"description": "Without a seed: to the same URL with a drawn one"},
        **responses(errors.NoSuchModel, errors.NoSuchLabel, errors.NotAcceptable, *LIMITS),
    },
)
async def image(request: Request, server: TheServer, caller: TheCaller, info: TheInfo, query: Annotated[ImageQuery, Query()]) -> Response:
    """One picture as bytes, made to be cached: for an `<img>` tag, a browser or a CDN."""
    encoding = Encoding(query.format or TYPES[choose_type(request, [MIME_TYPES[own_format(info)]])])
    (job,) = query.jobs(info, None)
    if query.seed is None:
        return RedirectResponse(request.url.include_query_params(seed=job.seed), 307)
    recipe = generate_recipe(info, job)
    headers = {"ETag": strong_etag(info, recipe, encoding), "Cache-Control": FOREVER, "Vary": "Accept"}
    if known_etags(request) & {headers["ETag"], "*"}:
        return Response(status_code=304, headers=headers)
    result = await server.recall(caller, headers["ETag"], job, encoding, recipe)
    (picture,) = result.pictures
    return Response(picture.data, media_type=picture.mime_type, headers=headers | dict(result.headers) | recipe_headers(picture, recipe))


def strong_etag(info: Info, recipe: dict[str, Any], encoding: Encoding) -> str:
    """Names the bytes without making them: they follow from the checkpoint, the recipe and the encoding."""
    whole = json.dumps([info.digest, recipe, encoding.mime_type], sort_keys=True)
    return f'"{hashlib.sha256(whole.encode()).hexdigest()[:32]}"'

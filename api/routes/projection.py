"""A picture's styles."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from api import errors
from api.engine.codec import decode_picture
from api.models.jobs import Pixels
from api.routes.blobs import BINARY, FORM, TYPES, read_upload
from api.routes.diffusion import read_blobs
from api.routes.generation import LIMITS
from api.routes.parts import JSON, PICTURE, TheCaller, TheInfo, TheOwner, TheServer, answer, negotiate, responses
from api.schemas.diffusion import decode_base64
from api.schemas.projection import ProjectedImage, ProjectQuery, ProjectRequestBody, project_recipe
from api.server import Server

router = APIRouter(tags=["editing"])
FAULTS = (errors.NoSuchModel, errors.NoSuchLabel, errors.NoSuchBlob, errors.Undecodable, errors.NotAcceptable, errors.TooLarge)
BODY: dict[str, Any] = {
    JSON: {"schema": ProjectRequestBody.model_json_schema()},
    "multipart/form-data": FORM,
    **dict.fromkeys(TYPES.values(), BINARY),
}


@router.post(
    "/{model_id}/project",
    operation_id="project",
    response_model=ProjectedImage,
    openapi_extra={"requestBody": {"required": True, "content": BODY}},
    responses={200: {"content": PICTURE}, **responses(*FAULTS, *LIMITS)},
)
async def project(
    request: Request,
    server: TheServer,
    caller: TheCaller,
    owner: TheOwner,
    info: TheInfo,
    query: Annotated[ProjectQuery, Query()],
) -> Response:
    """Finds the styles whose picture comes closest to the one that is sent: in JSON, as the body, or as a form's file.

    A large model takes minutes: then let it be a task.
    """
    chosen, encoding = negotiate(request, info)
    params, image = await read_request(request, server, owner, query)
    job = params.job(info, image)
    recipe = project_recipe(info, job)
    result = await server.compute(caller, [job], encoding, [recipe])
    return answer(chosen, ProjectedImage, info, result, [recipe])


async def read_request(request: Request, server: Server, owner: str, query: ProjectQuery) -> tuple[ProjectQuery, Pixels]:
    """The parameters, of which a JSON body has the last word, and the picture. Raises ``BadInput``, ``NoSuchBlob``."""
    data = await read_upload(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        return query, await decode(server, data)
    try:
        body = ProjectRequestBody.model_validate_json(data).after(query)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None
    kind, text = body.source()
    if kind == "blob":
        (image,) = await read_blobs(server, owner, initial_image=text)
        return body, image
    return body, await decode(server, decode_base64(text))


async def decode(server: Server, data: bytes) -> Pixels:
    return await asyncio.to_thread(decode_picture, data, max_pixels=server.config.blobs.max_pixels)

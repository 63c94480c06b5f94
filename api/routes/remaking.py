"""Kept pictures made again, and pictures of ours taken back in."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api import errors
from api.engine.codec import Encoding, decode_picture
from api.engine.wire import Picture
from api.errors import BadInput, Conflict, NoSuchModel, NotFound, TooLarge
from api.history.imports import rebuild
from api.history.jobs import pack_job, unpack_job
from api.history.origin import Entry
from api.models.jobs import Pixels
from api.routes.blobs import read_upload
from api.routes.editing import walk
from api.routes.generation import LIMITS
from api.routes.images import BINARY, MISSING, TheId, TheStore, describe
from api.routes.parts import TheCaller, TheOwner, TheServer, responses
from api.schemas.history import ImageDetails
from api.schemas.remaking import job_of
from api.schemas.walks import WALK, InterpolateRequestBody
from api.server import Caller, Server

if TYPE_CHECKING:
    from api.store.images import Image
    from api.store.store import Store

router = APIRouter(tags=["history"], responses=responses(errors.Unauthorized, errors.Forbidden, *LIMITS))
FORM: dict[str, Any] = {"schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY["schema"]}}}


@router.post(
    "/images/{image_id}/regenerate",
    operation_id="regenerate_image",
    response_class=Response,
    responses={200: {"content": {"image/*": BINARY}}, **MISSING, **responses(errors.Conflict)},
)
async def regenerate(server: TheServer, store: TheStore, caller: TheCaller, owner: TheOwner, image_id: TheId) -> Response:
    """Makes the picture anew and answers it: the same bytes, or 409 where that is not possible any more."""
    image = await store.images.get(image_id, owner)
    blob = await store.blobs.get(image.blob_id)
    try:
        data, headers = await remake(server, store, caller, image)
    except (BadInput, NotFound, ValidationError) as error:
        raise Conflict("the picture cannot be made again by the model as it is now") from error
    if hashlib.sha256(data).hexdigest() != blob.sha256:
        raise Conflict("made again, the picture differs: the model, or its place in the TOML, has changed, or the recipe is not its own")
    return Response(data, media_type=blob.type, headers={**headers, "X-Image-Id": image.id, "X-Content-Type-Options": "nosniff"})


async def remake(server: Server, store: Store, caller: Caller, image: Image) -> tuple[bytes, dict[str, str]]:
    """Raises ``Conflict``, ``BadInput``, ``NotFound``."""
    told, inputs = await store.images.job(image)
    if told is None:
        raise Conflict("the picture's recipe does not tell all that it was made from")
    info = await server.info(image.model)
    if told["kind"] == WALK:
        body = InterpolateRequestBody.model_validate(told["parameters"])
        result, animation = await walk(server, caller, body.walk(info))
        return animation.data, dict(result.headers)
    pictures = {name: await load(server, store, blob_id) for name, blob_id in inputs.items()}
    job, encoding = unpack_job(told, pictures)
    result = await server.compute(caller, [job], encoding, [image.recipe], keep=False)
    return result.pictures[0].data, dict(result.headers)


async def load(server: Server, store: Store, blob_id: str) -> Pixels:
    data = await store.blobs.read(await store.blobs.get(blob_id))
    return await asyncio.to_thread(decode_picture, data, max_pixels=server.config.blobs.max_pixels)


@router.post(
    "/images/import",
    operation_id="import_image",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": FORM, "image/png": BINARY}}},
    responses=responses(errors.Undecodable, errors.TooLarge, errors.BadInput),
)
async def import_image(request: Request, server: TheServer, store: TheStore, caller: TheCaller) -> ImageDetails:
    """Takes a PNG that this software made, by the recipe in it. It is rebuilt from its pixels; nothing else of the file is kept."""
    data = await read_upload(request)
    if len(data) > (most := server.config.blobs.max_size):
        raise TooLarge(f"found {len(data)} bytes; send at most {most}")
    await server.check_origin(caller.origin)
    async with server.limits.admit(caller.address) as admission:
        try:
            picture, recipe = await asyncio.to_thread(rebuild, data, server.config.blobs.max_pixels)
        except errors.BadInput:
            await admission.refund()
            raise
        ((image_id,), _) = await server.record(caller.origin, [await entry(server, picture, recipe)])
    return await describe(store, await store.images.get(image_id, caller.origin.owner))


async def entry(server: Server, picture: Picture, recipe: dict[str, Any]) -> Entry:
    """With the job that makes the picture again, if its model is here and the recipe tells all."""
    prompt = recipe.get("Prompt")
    made = Entry(kind="import", model=recipe["Model"], picture=picture, recipe=recipe, prompt=prompt if isinstance(prompt, str) else None)
    try:
        info = await server.info(recipe["Model"])
    except (NoSuchModel, errors.NotReady):
        return made
    job = job_of(info, recipe)
    return made if job is None else replace(made, job=pack_job(info, job, Encoding("png"), picture)[0])

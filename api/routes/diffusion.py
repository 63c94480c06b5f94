"""Pictures from words: POST with JSON for programs, GET by query string for browsers and `<img>` tags."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from api import errors
from api.engine.codec import MIME_TYPES, Encoding, decode_picture
from api.errors import BadInput, NotAcceptable
from api.models.base import Info
from api.models.jobs import Diffuse, Pixels
from api.routes.accept import choose
from api.routes.generation import LIMITS
from api.routes.parts import JSON, PICTURE, TYPES, TheCaller, TheOwner, TheServer, find_model, own_format, recipe_headers, responses
from api.schemas import diffusion as schema
from api.schemas.diffusion import Images, Img2ImgQuery, InpaintQuery, Text2ImgQuery, check_count, decode_base64, draw_seeds
from api.schemas.recipes import diffuse_recipe
from api.server import Answer, Caller, Server
from api.tasks import load_pictures

ERRORS = responses(errors.NoSuchModel, errors.TooLarge, errors.Unauthorized, *LIMITS)
Part = Literal["body", "query"]
router = APIRouter(tags=["diffusion"])


@router.post("/text2img/", operation_id="text2img", responses=ERRORS)
@router.post("/text2img", include_in_schema=False)
async def text2img(response: Response, server: TheServer, caller: TheCaller, _: TheOwner, body: schema.Text2Img) -> Images:
    """Makes pictures of a prompt."""
    return await post(response, server, caller, body)


@router.post("/img2img/", operation_id="img2img", responses=ERRORS)
@router.post("/img2img", include_in_schema=False)
async def img2img(response: Response, server: TheServer, caller: TheCaller, _: TheOwner, body: schema.Img2Img) -> Images:
    """Makes pictures that start from another one."""
    return await post(response, server, caller, body, await read_picture(server, "image", body.image))


@router.post("/inpainting/", operation_id="inpainting", responses=ERRORS)
@router.post("/inpainting", include_in_schema=False)
async def inpainting(response: Response, server: TheServer, caller: TheCaller, _: TheOwner, body: schema.Inpainting) -> Images:
    """Makes a part of a picture anew: the mask's white."""
    image, mask = [await read_picture(server, name, getattr(body, name)) for name in ("image", "mask_image")]
    return await post(response, server, caller, body, image, mask)


async def post(response: Response, server: Server, caller: Caller, body: Any, *pictures: Pixels) -> Images:
    info, answer, _ = await make(server, caller, "body", body, None, *pictures)
    response.headers.update(answer.headers)
    return Images.of(info, answer.pictures, answer.ids)


async def make(
    server: Server, caller: Caller, part: Part, params: Any, encoding: Encoding | None, *pictures: Pixels
) -> tuple[Info, Answer, Sequence[dict[str, Any]]]:
    """Computes a request, whose parameters are its query or its body. Raises ``RequestValidationError`` for what is wrong with it."""
    check_prompts(server, params, part)
    with as_invalid(part=part):
        info = await find_model(server, params.model, "Diffuse")
        check_count(info, params.number_of_images)
        # Large pictures take a while: a mask is made grey, and recipes name pictures by their digests.
        jobs, recipes = await asyncio.to_thread(prepare, info, params, *pictures)
        return info, await server.compute(caller, jobs, encoding or Encoding(own_format(info)), recipes), recipes


def prepare(info: Info, params: Any, *pictures: Pixels) -> tuple[Sequence[Diffuse], Sequence[dict[str, Any]]]:
    """Raises ``BadInput``."""
    first, *others = draw_seeds(params.seed, params.number_of_images)
    job = params.job(info, first, *pictures)
    recipe = diffuse_recipe(info, job)
    seeds = [first, *others]
    return [msgspec.structs.replace(job, seed=seed) for seed in seeds], [recipe | {"Seed": seed} for seed in seeds]


def check_prompts(server: Server, params: Any, part: Part = "body") -> None:
    """The TOML's bound; OpenAPI states it."""
    most = server.config.prompts.max_length
    for name in ("prompt", "negative_prompt"):
        if len(text := getattr(params, name, None) or "") > most:
            raise invalid(f"String should have at most {most} characters; found {len(text)}", name, part=part)


def invalid(message: str, *place: str, part: Part = "body") -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": (part, *place), "msg": message}])


@contextlib.contextmanager
def as_invalid(*place: str, part: Part = "body") -> Iterator[None]:
    """What a model finds wrong is told in the same form as what the schema does."""
    try:
        yield
    except BadInput as error:
        if error.status in (422, 415):
            raise invalid(str(error.detail), *place, part=part) from None
        raise


async def read_picture(server: Server, name: str, text: str) -> Pixels:
    with as_invalid(name):
        data = decode_base64(text)
        return await asyncio.to_thread(decode_picture, data, max_pixels=server.config.blobs.max_pixels)


# By query string.

GET: dict[str, Any] = {
    "response_class": Response,
    "responses": {200: {"content": {**PICTURE, JSON: {}}}, **responses(errors.NotAcceptable, errors.NoSuchBlob), **ERRORS},
}


@router.get("/txt2img", operation_id="get_txt2img", **GET)
async def get_txt2img(
    request: Request, server: TheServer, caller: TheCaller, owner: TheOwner, query: Annotated[Text2ImgQuery, Query()]
) -> Response:
    """The picture itself; leaving cancels."""
    return await get(request, server, caller, query)


@router.get("/img2img", operation_id="get_img2img", **GET)
async def get_img2img(
    request: Request, server: TheServer, caller: TheCaller, owner: TheOwner, query: Annotated[Img2ImgQuery, Query()]
) -> Response:
    """The picture itself, from a blob; leaving cancels."""
    caller = replace(caller, blobs=[query.initial_image])
    return await get(request, server, caller, query, *await read_blobs(server, owner, initial_image=query.initial_image))


@router.get("/inpaint", operation_id="get_inpaint", **GET)
async def get_inpaint(
    request: Request, server: TheServer, caller: TheCaller, owner: TheOwner, query: Annotated[InpaintQuery, Query()]
) -> Response:
    """The picture itself, from a blob and a mask; leaving cancels."""
    caller = replace(caller, blobs=[query.initial_image])
    return await get(request, server, caller, query, *await read_blobs(server, owner, initial_image=query.initial_image, mask=query.mask))


async def read_blobs(server: Server, owner: str, **blobs: str) -> Sequence[Pixels]:
    return list((await load_pictures(server, await server.store(), blobs, owner)).values())


async def get(request: Request, server: Server, caller: Caller, query: Any, *pictures: Pixels) -> Response:
    with as_invalid(part="query"):
        info = await find_model(server, query.model, "Diffuse")
    chosen = MIME_TYPES[query.format] if query.format else choose_picture(request, info)
    if chosen != JSON and query.number_of_images != 1:
        raise invalid("a bare picture is one; ask for application/json or number_of_images=1", "number_of_images", part="query")
    encoding = Encoding(TYPES.get(chosen, own_format(info)))
    info, answer, recipes = await make(server, caller, "query", query, encoding, *pictures)
    headers = {"Vary": "Accept", **answer.headers}
    if chosen == JSON:
        return Response(Images.of(info, answer.pictures, answer.ids).model_dump_json(), media_type=JSON, headers=headers)
    (picture,), (recipe,) = answer.pictures, recipes
    return Response(picture.data, media_type=picture.mime_type, headers=headers | recipe_headers(picture, recipe))


def choose_picture(request: Request, info: Info) -> str:
    """A picture unless JSON is liked better. Raises ``NotAcceptable``."""
    offers = list(dict.fromkeys([MIME_TYPES[own_format(info)], *MIME_TYPES.values(), JSON]))
    chosen = choose(tuple(request.headers.getlist("accept")), tuple(offers))
    if chosen is None:
        raise NotAcceptable(f"this route answers {', '.join(offers)}")
    return chosen

"""OpenAI's image routes, for the programs that speak them already."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from api import errors
from api.engine.codec import decode_picture
from api.engine.wire import Picture, Progress, Started
from api.errors import BadInput, Busy, ServerError
from api.models.base import Info
from api.models.jobs import Diffuse, Generate, Job, Pixels
from api.routes.diffusion import as_invalid, check_prompts, invalid
from api.routes.generation import LIMITS
from api.routes.parts import TheCaller, TheOwner, TheServer, find_model, responses
from api.schemas.diffusion import decode_base64
from api.schemas.openai import Common, Edits, Envelope, Generations, common, completed, envelope, split_alpha, told, usage
from api.schemas.recipes import diffuse_recipe, generate_recipe
from api.server import Answer, Caller, Server, Watching

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["openai"], responses=responses(errors.Unauthorized, model=Envelope))
ERRORS = {
    400: {"model": Envelope, "description": str(errors.BadInput.default)},
    **responses(errors.NoSuchModel, errors.TooLarge, *LIMITS, model=Envelope),
}
BINARY = {"type": "string", "format": "binary"}
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {"image": BINARY, "mask": BINARY, "prompt": {"type": "string"}},
}


@router.get("/models", operation_id="openai_models")
async def list_models(server: TheServer, _: TheOwner) -> dict[str, Any]:
    return {"object": "list", "data": [tell_model(model_id) for model_id in server.serving()]}


@router.get("/models/{model_id}", operation_id="openai_model", responses=responses(errors.NoSuchModel, model=Envelope))
async def get_model(server: TheServer, _: TheOwner, model_id: str) -> dict[str, Any]:
    server.engine(model_id)
    return tell_model(model_id)


def tell_model(model_id: str) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "this server"}


@router.options("/images/generations", include_in_schema=False)
@router.options("/images/edits", include_in_schema=False)
async def options() -> Response:
    return Response(status_code=204, headers={"Allow": "POST, OPTIONS"})


@router.options("/models", include_in_schema=False)
async def model_options() -> Response:
    return Response(status_code=204, headers={"Allow": "GET, OPTIONS"})


@router.post("/images/generations", operation_id="openai_generations", response_model=dict[str, Any], responses=ERRORS)
async def generations(request: Request, server: TheServer, caller: TheCaller, owner: TheOwner, body: Generations) -> Response:
    """Pictures of a prompt, by diffusion models and GANs."""
    info = await choose(server, body.model)
    return await Work(request, server, caller, owner, "image_generation", body, info).answer()


@router.post(
    "/images/edits",
    operation_id="openai_edits",
    response_model=dict[str, Any],
    responses=ERRORS,
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}, "application/json": {}}}},
)
async def edits(request: Request, server: TheServer, caller: TheCaller, owner: TheOwner) -> Response:
    """Pictures from a picture; where a mask is transparent, or else the picture itself, it is made anew."""
    fields, images, masks = await read_form(request)
    body = validate(fields)
    if len(images) != 1 or len(masks) > 1:
        raise invalid(f"found {len(images)} pictures and {len(masks)} masks; send one picture and at most one mask", "image")
    with as_invalid("image"):
        image = await decode(server, images[0])
    mask = None
    with as_invalid("mask"):
        if masks:
            mask = split_alpha(await decode(server, masks[0]))
        elif image.shape[2] == 4 and (image[:, :, 3] < 255).any():
            mask = split_alpha(image)
    with as_invalid():
        info = await find_model(server, body.model, "Diffuse")
    return await Work(request, server, caller, owner, "image_edit", body, info, image, mask).answer()


def validate(fields: Mapping[str, Any]) -> Edits:
    try:
        return Edits.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]) from None


async def choose(server: Server, model_id: str | None) -> Info:
    """The named model, or the first, those first that follow words. Raises ``NoSuchModel``, ``BadInput``."""
    infos = [await server.info(name) for name in ([model_id] if model_id is not None else server.serving())]
    for kind in ("Diffuse", "Generate"):
        for info in infos:
            if kind in info.kinds:
                return info
    raise BadInput("no model of this server can do this")


async def decode(server: Server, data: bytes) -> Pixels:
    return await asyncio.to_thread(decode_picture, data, max_pixels=server.config.blobs.max_pixels)


async def read_form(request: Request) -> tuple[dict[str, Any], list[bytes], list[bytes]]:
    """Fields, pictures and masks of a form or of JSON. Raises ``RequestValidationError``."""
    try:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            async with request.form(max_files=17, max_fields=64) as form:
                return await split_form(form.multi_items())
        fields = json.loads(await request.body())
    except (ValueError, RecursionError, ClientDisconnect):
        raise invalid("the body is neither a form nor JSON") from None
    except OSError as error:  # large files of forms lie on the disk meanwhile
        log.error("an upload cannot be kept: %s", error)
        raise Busy("there is no room for uploads") from error
    if not isinstance(fields, dict):
        raise invalid("the body is not a JSON object")
    pictures = [fields.pop(name, None) for name in ("image", "image[]", "images")]
    mask = fields.pop("mask", None)
    with as_invalid("image"):
        return fields, [*itertools.chain(*map(read_json, pictures))], read_json(mask)


async def split_form(items: Sequence[tuple[str, Any]]) -> tuple[dict[str, Any], list[bytes], list[bytes]]:
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    masks: list[bytes] = []
    for name, value in items:
        if isinstance(value, UploadFile):
            (masks if name == "mask" else images).append(await value.read())
        else:
            fields[name] = value
    return fields, images, masks


def read_json(value: Any) -> list[bytes]:
    """Pictures as base64 or data URLs, alone, in lists or as ``{"image_url": …}``. No other URL is followed."""
    match value:
        case None:
            return []
        case list():
            return [data for entry in value[:17] if entry is not None for data in read_one(entry)]
    return read_one(value)


def read_one(value: Any) -> list[bytes]:
    match value:
        case {"image_url": str(text)} | str(text):
            return [decode_base64(text)]
    raise BadInput("a picture is base64 or a data: URL")


class Work:
    """One request for pictures, answered at once or as a stream."""

    def __init__(
        self,
        request: Request,
        server: Server,
        caller: Caller,
        owner: str,
        kind: str,
        params: Common,
        info: Info,
        image: Pixels | None = None,
        mask: Pixels | None = None,
    ) -> None:
        self.request, self.server, self.caller, self.owner, self.kind, self.params, self.info = (
            request,
            server,
            caller,
            owner,
            kind,
            params,
            info,
        )
        check_prompts(server, params)
        with as_invalid():
            self.jobs = params.jobs(info, image, mask)
        ignored = params.ignored(info)
        self.headers = {"X-Ignored-Fields": ", ".join(quote(name, errors="replace") for name in ignored)[:1000]} if ignored else {}

    async def answer(self) -> Response:
        return await self.stream() if self.params.stream else await self.whole()

    async def compute(self, caller: Caller) -> Answer:
        recipes = [recipe_of(self.info, job) for job in self.jobs]
        with as_invalid():
            return await self.server.compute(caller, self.jobs, self.params.encoding(), recipes)

    async def whole(self) -> Response:
        answer = await self.compute(self.caller)
        data = [completed(picture, await self.keep(picture)) for picture in answer.pictures]
        return JSONResponse(told(self.params, answer.pictures, data), headers=self.headers | dict(answer.headers))

    async def keep(self, picture: Picture) -> str | None:
        """The address of the picture, where one is wanted."""
        if self.params.response_format != "url":
            return None
        store, expire = await self.server.store(), self.server.config.blobs.expire or None
        blob = await store.blobs.create(self.owner, picture.mime_type, picture.data, seconds=expire)
        return str(self.request.url_for("get_blob", blob_id=blob.id))

    async def stream(self) -> Response:
        """What is refused before anything is computed is refused as such; after the first event there is only the stream."""
        news: asyncio.Queue[Progress | Started] = asyncio.Queue()
        caller = replace(self.caller, watching=Watching(news.put_nowait, self.params.partial_images))
        working = asyncio.create_task(self.compute(caller))
        first = asyncio.create_task(news.get())
        try:
            await asyncio.wait({working, first}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            working.cancel()
            raise
        finally:
            first.cancel()
        if working.done() and not working.cancelled() and (error := working.exception()) is not None:
            raise error
        headers = self.headers | {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self.events(news, working), media_type="text/event-stream", headers=headers)

    async def events(self, news: asyncio.Queue[Progress | Started], working: asyncio.Task[Answer]) -> AsyncIterator[str]:
        working.add_done_callback(lambda _: news.put_nowait(Started([])))
        index = 0
        try:
            while not working.done() or not news.empty():
                message = await news.get()
                if isinstance(message, Progress) and message.preview is not None:
                    partial = await asyncio.to_thread(self.reencode, message.preview)
                    yield write("partial_image", self.kind, {"partial_image_index": index, **self.about(partial)})
                    index += 1
            answer = working.result()
            for picture, image_id in itertools.zip_longest(answer.pictures, answer.ids):
                extra = {"usage": usage(), **common(self.params, picture), "seed": picture.seed}
                extra |= {"image_id": image_id} if image_id else {}
                yield write("completed", self.kind, self.about(picture.data) | extra)
        except ServerError as error:
            yield f"event: error\ndata: {json.dumps(envelope(error.status, error.detail, error.code))}\n\n"
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await working

    def reencode(self, preview: bytes) -> bytes:
        """The engine's JPEG in the format that was asked for."""
        if self.params.output_format == "jpeg":
            return preview
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(decode_picture(preview, max_pixels=1 << 26)).save(buffer, self.params.output_format)
        return buffer.getvalue()

    def about(self, data: bytes) -> dict[str, Any]:
        size = self.params.size if self.params.size != "auto" else f"{self.info.width}x{self.info.height}"
        form = {"background": "opaque", "quality": "auto", "output_format": self.params.output_format, "size": size}
        return {"b64_json": base64.b64encode(data).decode(), "created_at": int(time.time()), **form}


def write(event: str, kind: str, data: Mapping[str, Any]) -> str:
    return f"event: {kind}.{event}\ndata: {json.dumps({'type': f'{kind}.{event}', **data})}\n\n"


def recipe_of(info: Info, job: Job) -> dict[str, Any]:
    if isinstance(job, Diffuse):
        return diffuse_recipe(info, job)
    assert isinstance(job, Generate)
    return generate_recipe(info, job)

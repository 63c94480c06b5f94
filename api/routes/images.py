"""The history: every picture that was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api import errors
from api.errors import Forbidden
from api.routes.parts import TheOwner, get_server, known_etags, responses
from api.schemas.history import ChangedImage, ImageDetails, KeptImage, KeptImages, Page, SearchPage
from api.server import Server

if TYPE_CHECKING:
    from api.store.images import Image
    from api.store.search import Query as Terms
    from api.store.store import Store

PRIVATE = "private, max-age=31536000, immutable"
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
PICTURES: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": BINARY}}, 304: {"description": "The client has it"}}


async def get_store(server: Annotated[Server, Depends(get_server)], _: TheOwner) -> Store:
    """Raises ``Forbidden`` where no history is kept."""
    if not server.config.store.history:
        raise Forbidden("this server keeps no history: [store] history is false")
    return await server.store()


TheStore = Annotated[Any, Depends(get_store)]
TheId = Annotated[str, Path(min_length=1, max_length=64)]
router = APIRouter(tags=["history"], responses=responses(errors.Unauthorized, errors.Forbidden, errors.Busy))
MISSING = responses(errors.NoSuchImage)


@router.get("/images", operation_id="images")
async def search_images(store: TheStore, owner: TheOwner, query: Annotated[SearchPage, Query()]) -> KeptImages:
    """The user's pictures that the query describes, newest first."""
    return await tell_page(store, owner, query, **query.terms())


async def tell_page(store: Store, owner: str, page: Page, **terms: Any) -> KeptImages:
    found = await store.images.page(owner, describe_query(terms), page.before, page.limit)
    tags = await store.tags.of_images([image.number for image in found])
    last = str(found[-1].number) if len(found) == page.limit else None
    return KeptImages(images=[KeptImage.of(image, tags[image.number]) for image in found], next=last)


def describe_query(terms: Mapping[str, Any]) -> Terms:
    from api.store.search import Query as Terms  # it brings SQLAlchemy along

    return Terms(**terms)


@router.get("/images/{image_id}", operation_id="kept_image", responses=MISSING)
async def get_image(store: TheStore, owner: TheOwner, image_id: TheId) -> ImageDetails:
    """All that is known of a picture."""
    return await describe(store, await store.images.get(image_id, owner))


async def describe(store: Store, image: Image) -> ImageDetails:
    job, inputs = await store.images.job(image)
    return ImageDetails.whole(image, await store.images.relations(image), job, inputs)


@router.patch("/images/{image_id}", operation_id="change_image", responses=MISSING)
async def change_image(store: TheStore, owner: TheOwner, image_id: TheId, body: ChangedImage) -> ImageDetails:
    """Stars a picture, notes something of it, tags it."""
    values = body.model_dump(exclude_unset=True, exclude={"tags"})
    if "tags" in body.model_fields_set:  # first, since what is wrong with them is found there
        await store.tags.replace(image_id, owner, body.tags)
    if values:
        await store.images.change(image_id, owner, values)
    return await describe(store, await store.images.get(image_id, owner))


@router.delete("/images/{image_id}", operation_id="delete_image", status_code=204, responses=MISSING)
async def delete_image(store: TheStore, owner: TheOwner, image_id: TheId) -> None:
    """Deletes a picture; for a while (`[store] undo`) it can be restored. Pictures made from it stay."""
    await store.trash.put(image_id, owner)


@router.post("/images/{image_id}/restore", operation_id="restore_image", responses=MISSING)
async def restore_image(store: TheStore, owner: TheOwner, image_id: TheId) -> ImageDetails:
    """Brings a deleted picture back, with its tags, collections and session."""
    await store.trash.restore(image_id, owner)
    return await describe(store, await store.images.get(image_id, owner))


@router.get("/images/{image_id}/file", operation_id="image_file", response_class=Response, responses={**PICTURES, **MISSING})
async def get_file(request: Request, store: TheStore, owner: TheOwner, image_id: TheId) -> Response:
    """The picture as it was made."""
    image = await store.images.get(image_id, owner)
    return await send(request, store, image.blob_id)


@router.get("/images/{image_id}/thumbnail", operation_id="image_thumbnail", response_class=Response, responses={**PICTURES, **MISSING})
async def get_thumbnail(request: Request, store: TheStore, owner: TheOwner, image_id: TheId) -> Response:
    """The picture in at most 256 pixels a side; a small one itself."""
    image = await store.images.get(image_id, owner)
    return await send(request, store, image.thumbnail_id or image.blob_id)


async def send(request: Request, store: Store, blob_id: str) -> Response:
    blob = await store.blobs.get(blob_id)
    headers = {"ETag": f'"{blob.sha256}"', "Cache-Control": PRIVATE, "X-Content-Type-Options": "nosniff"}
    if known_etags(request) & {headers["ETag"], "*"}:
        return Response(status_code=304, headers=headers)
    return StreamingResponse(store.blobs.stream(blob), 200, headers | {"Content-Length": str(blob.size)}, blob.type)

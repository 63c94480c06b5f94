"""Kept pictures as one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from api import errors
from api.routes.images import BINARY, TheStore, describe_query
from api.routes.parts import TheOwner, responses
from api.schemas.history import Search, Selection

if TYPE_CHECKING:
    from api.store.store import Store

ZIP: dict[str, Any] = {
    "response_class": StreamingResponse,
    "responses": {200: {"content": {"application/zip": BINARY}, "description": "Pictures in a folder, images.json and images.csv"}},
}
router = APIRouter(tags=["history"], responses=responses(errors.Unauthorized, errors.Forbidden, errors.Busy))


@router.get("/images/export", operation_id="export_search", **ZIP)
async def export_search(store: TheStore, owner: TheOwner, query: Annotated[Search, Query()]) -> StreamingResponse:
    """What a search finds as a zip, at most 10,000 pictures."""
    return await send(store, owner, None, query.terms())


@router.post("/images/export", operation_id="export_images", **ZIP | {"responses": {**ZIP["responses"], **responses(errors.NoSuchImage)}})
async def export_images(store: TheStore, owner: TheOwner, body: Selection) -> StreamingResponse:
    """Chosen pictures as a zip."""
    return await send(store, owner, body.ids, body.search.terms() if body.search else {})


async def send(store: Store, owner: str, ids: list[str] | None, terms: dict[str, Any]) -> StreamingResponse:
    from api.history.export import choose, export  # they bring SQLAlchemy along

    chosen = await choose(store, owner, ids, describe_query(terms))
    headers = {"Content-Disposition": 'attachment; filename="images.zip"'}
    return StreamingResponse(export(store, owner, chosen), media_type="application/zip", headers=headers)

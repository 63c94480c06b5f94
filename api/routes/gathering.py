"""What pictures are gathered in: sessions, collections, tags."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from api import errors
from api.routes.images import TheId, TheStore, tell_page
from api.routes.parts import TheOwner, responses
from api.schemas.history import Collections, CountedTag, Gathering, KeptImages, Moved, Named, Page, Sessions

router = APIRouter(tags=["history"], responses=responses(errors.Unauthorized, errors.Forbidden, errors.Busy))
TheTag = Annotated[str, Path(min_length=1, max_length=200)]
ThePage = Annotated[Page, Query()]
NO_SESSION, NO_COLLECTION, NO_TAG = responses(errors.NoSuchSession), responses(errors.NoSuchCollection), responses(errors.NoSuchTag)


# Sessions.


@router.get("/sessions", operation_id="sessions")
async def list_sessions(store: TheStore, owner: TheOwner, page: ThePage) -> Sessions:
    """The user's sessions, newest first. A picture comes into one by the header or cookie that names it."""
    found, last = await list_groups(store.sessions, owner, page)
    return Sessions(sessions=found, next=last)


async def list_groups(groups: Any, owner: str, page: Page) -> tuple[list[Gathering], str | None]:
    found = await groups.page(owner, page.before, page.limit)
    return [Gathering.of(group) for group in found], str(found[-1].number) if len(found) == page.limit else None


@router.post("/sessions", operation_id="create_session", status_code=201)
async def create_session(store: TheStore, owner: TheOwner, body: Named) -> Gathering:
    return Gathering.of(await store.sessions.create(owner, body.name))


@router.get("/sessions/{session_id}", operation_id="session", responses=NO_SESSION)
async def get_session(store: TheStore, owner: TheOwner, session_id: TheId) -> Gathering:
    return Gathering.of(await store.sessions.get(session_id, owner))


@router.patch("/sessions/{session_id}", operation_id="rename_session", responses=NO_SESSION)
async def rename_session(store: TheStore, owner: TheOwner, session_id: TheId, body: Named) -> Gathering:
    await store.sessions.rename(session_id, owner, body.name)
    return Gathering.of(await store.sessions.get(session_id, owner))


@router.delete("/sessions/{session_id}", operation_id="delete_session", status_code=204, responses=NO_SESSION)
async def delete_session(store: TheStore, owner: TheOwner, session_id: TheId) -> None:
    """Its pictures stay."""
    await store.sessions.delete(session_id, owner)


@router.get("/sessions/{session_id}/images", operation_id="session_images", responses=NO_SESSION)
async def session_images(store: TheStore, owner: TheOwner, session_id: TheId, page: ThePage) -> KeptImages:
    await store.sessions.get(session_id, owner)
    return await tell_page(store, owner, page, session_id=session_id)


# Collections.


@router.get("/collections", operation_id="collections")
async def list_collections(store: TheStore, owner: TheOwner, page: ThePage) -> Collections:
    """The user's collections, newest first."""
    found, last = await list_groups(store.collections, owner, page)
    return Collections(collections=found, next=last)


@router.post("/collections", operation_id="create_collection", status_code=201, responses=responses(errors.Conflict))
async def create_collection(store: TheStore, owner: TheOwner, body: Named) -> Gathering:
    return Gathering.of(await store.collections.create(owner, body.name))


@router.get("/collections/{collection_id}", operation_id="collection", responses=NO_COLLECTION)
async def get_collection(store: TheStore, owner: TheOwner, collection_id: TheId) -> Gathering:
    return Gathering.of(await store.collections.get(collection_id, owner))


@router.patch(
    "/collections/{collection_id}", operation_id="rename_collection", responses=responses(errors.NoSuchCollection, errors.Conflict)
)
async def rename_collection(store: TheStore, owner: TheOwner, collection_id: TheId, body: Named) -> Gathering:
    await store.collections.rename(collection_id, owner, body.name)
    return Gathering.of(await store.collections.get(collection_id, owner))


@router.delete("/collections/{collection_id}", operation_id="delete_collection", status_code=204, responses=NO_COLLECTION)
async def delete_collection(store: TheStore, owner: TheOwner, collection_id: TheId) -> None:
    """Its pictures stay."""
    await store.collections.delete(collection_id, owner)


@router.get("/collections/{collection_id}/images", operation_id="collection_images", responses=NO_COLLECTION)
async def collection_images(store: TheStore, owner: TheOwner, collection_id: TheId, page: ThePage) -> KeptImages:
    await store.collections.get(collection_id, owner)
    return await tell_page(store, owner, page, collection_id=collection_id)


@router.post(
    "/collections/{collection_id}/images", operation_id="gather_images", responses=responses(errors.NoSuchCollection, errors.NoSuchImage)
)
async def gather_images(store: TheStore, owner: TheOwner, collection_id: TheId, body: Moved) -> Gathering:
    """Puts pictures in and takes others out."""
    await store.collections.change(collection_id, owner, body.add, body.remove)
    return Gathering.of(await store.collections.get(collection_id, owner))


# Tags. A tag may contain a slash.


@router.get("/tags", operation_id="tags")
async def list_tags(store: TheStore, owner: TheOwner) -> list[CountedTag]:
    """The user's tags by name. They come with their first picture and go with their last."""
    return [CountedTag(name=name, images=images) for name, images in await store.tags.of_owner(owner)]


@router.get("/tags/{name:path}/images", operation_id="tag_images")
async def tag_images(store: TheStore, owner: TheOwner, name: TheTag, page: ThePage) -> KeptImages:
    return await tell_page(store, owner, page, tags=[name])


@router.post("/tags/{name:path}/images", operation_id="tag_more_images", responses=responses(errors.NoSuchImage))
async def tag_more_images(store: TheStore, owner: TheOwner, name: TheTag, body: Moved) -> list[CountedTag]:
    """Gives pictures the tag and takes it from others; answers all tags."""
    await store.tags.change(name, owner, body.add, body.remove)
    return await list_tags(store, owner)


@router.patch("/tags/{name:path}", operation_id="rename_tag", responses=responses(errors.NoSuchTag, errors.Conflict))
async def rename_tag(store: TheStore, owner: TheOwner, name: TheTag, body: Named) -> list[CountedTag]:
    """Answers all tags."""
    await store.tags.rename(name, owner, body.name)
    return await list_tags(store, owner)


@router.delete("/tags/{name:path}", operation_id="delete_tag", status_code=204, responses=NO_TAG)
async def delete_tag(store: TheStore, owner: TheOwner, name: TheTag) -> None:
    """Takes the tag from all pictures."""
    await store.tags.delete(name, owner)

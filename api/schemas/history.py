"""The history over HTTP: kept pictures, what they are gathered in, and what can be asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from api.store.groups import Group
    from api.store.images import Image, Relations

MOST_IDS = 1000
Id = Annotated[str, Field(min_length=1, max_length=64, examples=["0f3e…"])]
Ids = Annotated[list[Id], Field(max_length=MOST_IDS)]
Tag = Annotated[str, Field(min_length=1, max_length=200, description="1 to 64 characters; letter case and extra spaces do not matter")]
Name = Annotated[str, Field(min_length=1, max_length=1000, description="1 to 200 printable characters")]
Cursor = Annotated[str | None, Field(pattern=r"^[0-9]{1,18}$", description="`next` of the page before")]
Limit = Annotated[int, Field(ge=1, le=200, description="Entries of a page")]
Time = Annotated[float | None, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Search(BaseModel):
    """All that is given must hold."""

    model: str | None = Field(None, max_length=255)
    label: str | None = Field(None, max_length=255)
    tag: list[Tag] = Field([], max_length=8, description="Each of them")
    collection: Id | None = Field(None, description="A collection's id")
    session: Id | None = Field(None, description="A session's id")
    text: str | None = Field(None, max_length=1000, description="Words that the prompt contains, in any order")
    since: Time = Field(None, description="Made at this time or later, in Unix seconds")
    until: Time = Field(None, description="Made before this time, in Unix seconds")
    starred: bool | None = None

    def terms(self) -> dict[str, Any]:
        """The same in the store's words."""
        found = self.model_dump(include={"model", "label", "text", "since", "until", "starred"})
        return found | {"tags": self.tag, "collection_id": self.collection, "session_id": self.session}


class Page(BaseModel):
    cursor: Cursor = None
    limit: Limit = 50

    @property
    def before(self) -> int | None:
        return None if self.cursor is None else int(self.cursor)


class SearchPage(Search, Page):
    """The query of GET /images."""


class KeptImage(BaseModel):
    """A picture of the history, as lists tell of it."""

    id: str
    created: float = Field(description="Unix seconds")
    kind: str = Field(examples=["generate", "synthesize", "edit", "diffuse", "interpolate", "import"])
    model: str
    label: str | None
    prompt: str | None
    seed: int | None
    width: int
    height: int
    mime_type: str = Field(examples=["image/png"])
    starred: bool
    note: str | None
    tags: list[str]
    session: str | None = Field(description="Its session's id")
    task_id: str | None
    blob_id: str = Field(description="Its file as a blob, for tasks and img2img to start from")
    file: str = Field(description="Path of the picture")
    thumbnail: str = Field(description="Path of a picture of at most 256 pixels a side")

    @classmethod
    def of(cls, image: Image, tags: Sequence[str]) -> Self:
        return cls(**tell(image, tags))


class KeptImages(BaseModel):
    images: list[KeptImage]
    next: str | None = Field(description="The `cursor` of the next page; null after the last one")


class ImageDetails(KeptImage):
    recipe: dict[str, Any] = Field(description="What its file tells of how it was made")
    job: dict[str, Any] | None = Field(
        description="All that makes it again: vectors as base64 of `.npy`, pictures by name; null of imports that lack it"
    )
    inputs: dict[str, str] = Field(description="Pictures that it started from: names in the job → blob ids")
    parents: list[str] = Field(description="Ids of the pictures that it was made from")
    children: list[str] = Field(description="Ids of the pictures that were made from it")
    collections: list[str] = Field(description="Ids of the collections that it is in")
    directions: dict[str, float] = Field(description="What it was moved along, and how far")

    @classmethod
    def whole(cls, image: Image, relations: Relations, job: Mapping[str, Any] | None, inputs: Mapping[str, str]) -> Self:
        names = ("parents", "children", "collections", "directions")
        found = {name: getattr(relations, name) for name in names}
        return cls(
            **tell(image, relations.tags), **found, recipe=dict(image.recipe), job=None if job is None else dict(job), inputs=dict(inputs)
        )


def tell(image: Image, tags: Sequence[str]) -> dict[str, Any]:
    names = (
        "id",
        "created",
        "kind",
        "model",
        "label",
        "prompt",
        "seed",
        "width",
        "height",
        "mime_type",
        "starred",
        "note",
        "task_id",
        "blob_id",
    )
    places = {"file": f"/images/{image.id}/file", "thumbnail": f"/images/{image.id}/thumbnail"}
    return {name: getattr(image, name) for name in names} | places | {"tags": list(tags), "session": image.session_id}


class ChangedImage(Strict):
    """What is absent stays as it is."""

    starred: bool = False
    note: str | None = Field(None, max_length=2000, description="null takes it away")
    tags: list[Tag] = Field([], max_length=64, description="The picture's only tags from now on")


class Named(Strict):
    name: Name


class Moved(Strict):
    """Pictures to gather, and pictures to take out."""

    add: Ids = []
    remove: Ids = []


class Gathering(BaseModel):
    """A session or a collection."""

    id: str
    name: str
    created: float = Field(description="Unix seconds")
    images: int = Field(description="How many pictures it has")

    @classmethod
    def of(cls, group: Group) -> Self:
        return cls(id=group.id, name=group.name, created=group.created, images=group.images)


class Sessions(BaseModel):
    sessions: list[Gathering]
    next: str | None


class Collections(BaseModel):
    collections: list[Gathering]
    next: str | None


class CountedTag(BaseModel):
    name: str
    images: int = Field(description="How many pictures have it")


class Selection(Strict):
    """Pictures by their ids, or, without these, all that a search finds."""

    ids: Annotated[Ids, Field(min_length=1)] | None = None
    search: Search | None = None

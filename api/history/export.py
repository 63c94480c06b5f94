"""A selection of pictures as a zip: the files, and what is known of them as JSON and CSV. It is written while it is sent."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from api.errors import NoSuchBlob, NoSuchImage
from api.store.images import Image
from api.store.search import Query
from api.store.store import Store

MOST = 10_000
"""Pictures of an export."""
STEP = 200
EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/gif": "gif",
    "image/apng": "png",
    "video/mp4": "mp4",
}
COLUMNS = ("file", "id", "created", "kind", "model", "label", "prompt", "seed", "width", "height", "starred", "note", "tags")


class Sink(io.RawIOBase):
    """What a zip writer writes, until somebody takes it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self.parts)
        self.parts.clear()
        return taken


async def choose(store: Store, owner: str, ids: Sequence[str] | None, query: Query) -> list[str]:
    """The ids of the pictures to export, at most ``MOST``. Raises ``NoSuchImage``."""
    if ids is not None:
        return [(await store.images.get(image_id, owner)).id for image_id in dict.fromkeys(ids)]
    found: list[str] = []
    before = None
    while len(found) < MOST and (page := await store.images.page(owner, query, before, STEP)):
        found += [image.id for image in page]
        before = page[-1].number
    return found[:MOST]


async def export(store: Store, owner: str, ids: Sequence[str]) -> AsyncIterator[bytes]:
    """The zip in pieces. A picture that is deleted meanwhile is left out."""
    sink, table = Sink(), io.StringIO()
    rows = csv.writer(table)
    rows.writerow(COLUMNS)
    with zipfile.ZipFile(sink, "w") as archive:
        described: list[dict[str, Any]] = []
        for image_id in ids:
            with suppress(NoSuchImage, NoSuchBlob):
                image = await store.images.get(image_id, owner)
                tags = (await store.tags.of_images([image.number]))[image.number]
                name = f"images/{image.id}.{EXTENSIONS.get(image.mime_type, 'bin')}"
                async for piece in add_file(archive, sink, store, image, name):
                    yield piece
                facts = tell(image, tags, name)
                rows.writerow([cell(facts[column]) for column in COLUMNS])
                described.append(facts | {"recipe": dict(image.recipe)})
        await asyncio.to_thread(archive.writestr, "images.csv", table.getvalue(), zipfile.ZIP_DEFLATED)
        yield sink.take()
        await asyncio.to_thread(lambda: archive.writestr("images.json", json.dumps(described, indent=1), zipfile.ZIP_DEFLATED))
    yield sink.take()


async def add_file(archive: zipfile.ZipFile, sink: Sink, store: Store, image: Image, name: str) -> AsyncIterator[bytes]:
    """Stored as it is: pictures are compressed already."""
    blob = await store.blobs.get(image.blob_id)
    entry = zipfile.ZipInfo(name, time.gmtime(max(image.created, 315_532_800.0))[:6])  # zip's times begin in 1980
    entry.file_size = blob.size
    with archive.open(entry, "w") as file:
        async for chunk in store.blobs.stream(blob):
            file.write(chunk)
            yield sink.take()


def tell(image: Image, tags: Sequence[str], name: str) -> dict[str, Any]:
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(image.created))
    facts: Mapping[str, Any] = {column: getattr(image, column, None) for column in COLUMNS}
    return {**facts, "file": name, "created": made, "tags": list(tags)}


def cell(value: Any) -> Any:
    """What a table program shows and does not compute: a text that looks like a formula gets an apostrophe before it."""
    text = ", ".join(value) if isinstance(value, list) else value
    return "'" + text if isinstance(text, str) and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text

"""Blobs in an object store: anything that fsspec reaches by a URL, above all S3 and what speaks like it."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from api.errors import Busy, ConfigError, NoSuchBlob, ServerError

log = logging.getLogger(__name__)
CHUNK = 1 << 22  # each is a request of its own
S3_PATIENCE = {"config_kwargs": {"connect_timeout": 3, "read_timeout": 30, "retries": {"total_max_attempts": 1}}}  # fsspec tries again
DIGITS = "0123456789abcdef"


def open_objects(url: str, options: Mapping[str, Any]) -> Objects:
    """The bucket at a URL such as ``s3://name/folder``. Raises ``ConfigError``."""
    try:
        spec = importlib.import_module("fsspec")
        # Lists are always asked for: other hosts write, too.
        options = S3_PATIENCE | dict(options) if url.startswith("s3") else options
        store, root = spec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
    except ModuleNotFoundError as error:
        raise ConfigError(f"blobs.url: {error.name} is not installed; pip install -r requirements-cluster.txt") from None
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"blobs.url: {error}") from None
    return Objects(store, root.rstrip("/"))


class Objects:
    """``root``/a/bc/abcdef…, as in a folder. The library's calls block and are made on threads; it keeps its connections.

    An object is there when all of it has been sent, or not at all: that is what such stores promise of a write.
    """

    def __init__(self, store: Any, root: str) -> None:
        self.store, self.root = store, root

    def path(self, key: str) -> str:
        return f"{self.root}/{key[0]}/{key[1:3]}/{key}"

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        data = b"".join([chunk async for chunk in chunks])  # pictures are small enough to be sent in one piece
        with tell_busy():
            await asyncio.to_thread(self.store.pipe_file, self.path(key), data)

    async def read(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        path = self.path(key)
        with tell_busy(key):
            if start == stop:
                await asyncio.to_thread(self.store.info, path)
            for begin in range(start, stop, CHUNK):
                yield await asyncio.to_thread(self.store.cat_file, path, start=begin, end=min(begin + CHUNK, stop))

    async def delete(self, key: str) -> None:
        with tell_busy(), suppress(FileNotFoundError):
            await asyncio.to_thread(self.store.rm_file, self.path(key))

    async def keys(self, age: float) -> AsyncIterator[list[str]]:
        for digit in DIGITS:
            with tell_busy():
                if found := await asyncio.to_thread(self.list, f"{self.root}/{digit}", time.time() - age):
                    yield found

    def list(self, folder: str, limit: float) -> list[str]:
        """The keys below a folder that were written before ``limit``, in Unix seconds."""
        found: dict[str, dict[str, Any]] = self.store.find(folder, detail=True)
        return [path.rpartition("/")[2] for path, facts in found.items() if self.written(path, facts) < limit]

    def written(self, path: str, facts: Mapping[str, Any]) -> float:
        moment: datetime = facts.get("LastModified") or self.store.modified(path)
        return moment.timestamp()

    async def adopt(self, name: str) -> bool:
        path = f"{self.root}/database"
        with tell_busy():
            try:
                await asyncio.to_thread(self.store.pipe_file, path, name.encode(), mode="create")
            except FileExistsError:
                mark: bytes = await asyncio.to_thread(self.store.cat_file, path)
                return mark.decode() == name
            return True


@contextmanager
def tell_busy(key: str | None = None) -> Iterator[None]:
    """The storage's failures as ``Busy``; that there is nothing under ``key``, where one is read, as ``NoSuchBlob``."""
    try:
        yield
    except ServerError:
        raise
    except FileNotFoundError as error:
        raise (Busy("the blobs' storage is unavailable") if key is None else NoSuchBlob(key)) from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        log.error("the blobs' storage cannot be used: %s", error)
        raise Busy("the blobs' storage is unavailable") from error

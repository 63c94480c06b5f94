"""Where the bytes of blobs lie. ``Folder`` is a directory; ``api.store.objects`` has the member that is an object store."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from api.errors import Busy, NoSuchBlob

log = logging.getLogger(__name__)
CHUNK = 1 << 18


class Bucket(Protocol):
    """Failures of the storage itself, such as a full disk, raise ``Busy``."""

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Stores all chunks under ``key``, durably and all or nothing: an error of ``chunks`` leaves nothing."""
        ...

    def read(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes ``start`` … ``stop`` − 1. Raises ``NoSuchBlob``."""
        ...

    async def delete(self, key: str) -> None:
        """Also where there is nothing under ``key``."""
        ...

    def keys(self, age: float) -> AsyncIterator[list[str]]:
        """All keys that were written more than ``age`` seconds ago, in small lists."""
        ...

    async def adopt(self, name: str) -> bool:
        """Marks an unmarked bucket as belonging to the database ``name``; tells whether it does."""
        ...


def open_bucket(url: str | None, options: Mapping[str, Any], data_dir: Path) -> Bucket:
    """The bucket at a URL or path; without one, a folder in ``data_dir``. Raises ``ConfigError``."""
    scheme, _, place = (url or str(data_dir / "blobs")).rpartition("://")
    if scheme in ("", "file"):
        return Folder(Path(place))
    bucket: Bucket = importlib.import_module("api.store.objects").open_objects(url, options)
    return bucket


class Folder:
    """``root``/a/bc/abcdef…: 4096 directories, so that none grows large and few are nearly empty.

    A file is written beside, flushed to the disk, and renamed: under its key there is either all of it or nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        part = self.root / "parts" / key
        with tell_busy():
            file = await asyncio.to_thread(create, part)
        try:
            async for chunk in chunks:  # whose errors are their own
                with tell_busy():
                    await asyncio.to_thread(file.write, chunk)
            with tell_busy():
                await asyncio.to_thread(publish, file, part, self.path(key))
        except BaseException:
            with suppress(OSError):
                file.close()  # which tries once more to write what is left
            part.unlink(missing_ok=True)
            raise

    async def read(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        with tell_busy(key):
            file = await asyncio.to_thread(open, self.path(key), "rb")
            try:
                file.seek(start)
                while start < stop and (chunk := await asyncio.to_thread(file.read, min(CHUNK, stop - start))):
                    start += len(chunk)
                    yield chunk
            finally:
                file.close()

    async def delete(self, key: str) -> None:
        with tell_busy():
            await asyncio.to_thread(self.path(key).unlink, missing_ok=True)

    async def keys(self, age: float) -> AsyncIterator[list[str]]:
        with tell_busy():
            await asyncio.to_thread(self.drop_parts, age)
            folders = await asyncio.to_thread(lambda: sorted(self.root.glob("?/??")))
            for folder in folders:
                if found := await asyncio.to_thread(old_names, folder, age):
                    yield found

    async def adopt(self, name: str) -> bool:
        with tell_busy():
            return await asyncio.to_thread(self.mark, name)

    def mark(self, name: str) -> bool:
        path = self.root / "database"
        self.root.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"database.{os.getpid()}")
        try:
            part.write_text(name)
            os.link(part, path)  # unlike a rename, it fails where another process was first
        except FileExistsError:
            return path.read_text() == name
        finally:
            part.unlink(missing_ok=True)
        return True

    def drop_parts(self, age: float) -> None:
        """What is left of writers that were killed."""
        for path in old_files(self.root / "parts", age):
            path.unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        return self.root / key[0] / key[1:3] / key


@contextmanager
def tell_busy(key: str | None = None) -> Iterator[None]:
    """The disk's failures as ``Busy``; that there is no file for ``key``, where one is read, as ``NoSuchBlob``."""
    try:
        yield
    except FileNotFoundError as error:
        raise (Busy("the blobs' storage is unavailable") if key is None else NoSuchBlob(key)) from error
    except OSError as error:
        log.error("the blobs' storage cannot be used: %s", error)
        raise Busy("the blobs' storage is unavailable") from error


def create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "xb")


def publish(file: BinaryIO, part: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    part.rename(path)
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):  # new directories are entries to flush, too
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def old_names(folder: Path, age: float) -> list[str]:
    return [path.name for path in old_files(folder, age)]


def old_files(folder: Path, age: float) -> Iterator[Path]:
    limit = time.time() - age
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file() and entry.stat().st_mtime < limit:
                        yield Path(entry.path)
                except FileNotFoundError:  # swept by another process
                    continue

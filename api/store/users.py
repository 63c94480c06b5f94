"""Users with passwords."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.exc import IntegrityError

from api.errors import BadInput, Conflict
from api.store.database import Database
from api.store.tables import Now, Row, users

NAME = re.compile(r"[\w.@+-]{1,64}")
PASSWORD = range(8, 1025)
"""Permitted lengths in characters; the longest bounds the work that a stranger can ask for."""


@dataclass(frozen=True, slots=True)
class User:
    id: int
    name: str
    created: float


class Users:
    """Passwords are hashed with argon2id in the parameters of RFC 9106's second choice (64 MiB), on threads, ``parallel`` at once."""

    def __init__(self, database: Database, parallel: int = 2) -> None:
        self.database = database
        self.hasher = PasswordHasher()
        self.slots = asyncio.Semaphore(parallel)

    async def create(self, name: str, password: str) -> User:
        """Raises ``BadInput``, and ``Conflict`` where the name is taken; names that differ in case or width only are the same."""
        name = check_name(name)
        if len(password) not in PASSWORD:
            raise BadInput(f"found a password of {len(password)} characters; use {PASSWORD.start} to {PASSWORD.stop - 1}")
        digest = await self.hash(password)
        values = {"name": name, "folded": fold(name), "password": digest, "created": Now()}
        try:
            async with self.database.write() as connection:
                query = sa.insert(users).values(values).returning(users.c.id, users.c.name, users.c.created)
                return User(*(await connection.execute(query)).one())
        except IntegrityError:
            raise Conflict(f"the user name {name!r} is taken") from None

    async def get(self, name: str) -> User | None:
        row = await self.find(name)
        return None if row is None else User(row.id, row.name, row.created)

    async def verify(self, name: str, password: str) -> User | None:
        """The user, if the password is theirs. An unknown name takes as long as a wrong password."""
        if len(password) > PASSWORD.stop:
            return None
        row = await self.find(name)
        async with self.slots:
            stored = await asyncio.to_thread(lambda: self.decoy) if row is None else row.password
            good = await asyncio.to_thread(self.check, stored, password)
        if row is None or not good:
            return None
        if self.hasher.check_needs_rehash(row.password):
            await self.store(row.id, await self.hash(password))
        return User(row.id, row.name, row.created)

    async def set_password(self, name: str, password: str) -> bool:
        """``False`` where there is no such user. Raises ``BadInput``."""
        if len(password) not in PASSWORD:
            raise BadInput(f"found a password of {len(password)} characters; use {PASSWORD.start} to {PASSWORD.stop - 1}")
        row = await self.find(name)
        if row is None:
            return False
        await self.store(row.id, await self.hash(password))
        return True

    async def find(self, name: str) -> Row | None:
        if not NAME.fullmatch(normalize(name)):
            return None
        query = sa.select(users.c.id, users.c.name, users.c.password, users.c.created).where(users.c.folded == fold(name))
        async with self.database.read() as connection:
            return (await connection.execute(query)).one_or_none()

    async def store(self, user_id: int, digest: str) -> None:
        async with self.database.write() as connection:
            await connection.execute(sa.update(users).where(users.c.id == user_id).values(password=digest))

    async def hash(self, password: str) -> str:
        async with self.slots:
            return await asyncio.to_thread(self.hasher.hash, encode(password))

    def check(self, digest: str, password: str) -> bool:
        try:
            return self.hasher.verify(digest, encode(password))
        except (VerificationError, InvalidHashError):
            return False

    @cached_property
    def decoy(self) -> str:
        return self.hasher.hash("nobody's password")


def check_name(name: str) -> str:
    """Raises ``BadInput``, also for a name whose other spelling is longer than its column, and for one that routes know another way."""
    name = normalize(name)
    if not NAME.fullmatch(name) or len(fold(name)) > 256:
        raise BadInput(f"found the user name {name[:80]!r}; use 1 to 64 letters, digits or any of . @ + - _")
    if fold(name) == "all":  # POST /token/all is for anybody
        raise BadInput("the user name 'all' is taken by the server")
    return name


def normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name[:1024])


def fold(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def encode(password: str) -> bytes:
    """One spelling on every keyboard (RFC 8265), whatever lone surrogates a client sends."""
    return unicodedata.normalize("NFC", password).encode(errors="surrogatepass")

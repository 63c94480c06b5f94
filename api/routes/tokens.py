"""Who somebody is: accounts, and tokens that are shown instead of a password."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.security import OAuth2PasswordRequestForm
from pydantic import BaseModel, Field

from api import errors
from api.auth import KEY, PUBLIC, USER
from api.errors import Forbidden, Unauthorized
from api.routes.parts import TheOwner, TheServer, responses
from api.server import Server

router = APIRouter(tags=["tokens"], responses=responses(errors.Unauthorized, errors.Forbidden, errors.Busy))


class Token(BaseModel):
    access_token: str
    token_type: str = "bearer"
    expires_in: int = Field(description="Seconds")


class Account(BaseModel):
    username: str = Field(max_length=64)


class NewAccount(Account):
    password: str = Field(max_length=1024)


class NoSuchUser(errors.NotFound):
    code, kind = "user_not_found", "user"


@router.post("/token", operation_id="create_token")
async def create_token(server: TheServer, form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> Token:
    """A token for a name and a password (OAuth 2's password grant)."""
    check_enabled(server)
    user = await (await server.store()).users.verify(form.username, form.password)
    if user is None:
        raise Unauthorized("the name or the password is wrong")
    return give(server, USER + user.name)


@router.post("/token/all", operation_id="create_public_token")
async def create_public_token(server: TheServer) -> Token:
    """A token for anybody, if the server gives such. Each stands for somebody of its own, whose pictures others do not see."""
    check_enabled(server)
    if not server.tokens.public:
        raise Forbidden("this server gives no public tokens")
    return give(server, PUBLIC + secrets.token_hex(16))


@router.post("/token/{username}", operation_id="renew_token", responses=responses(NoSuchUser))
async def renew_token(server: TheServer, owner: TheOwner, username: str) -> Token:
    """A new token for oneself; with an API key, for any user."""
    check_enabled(server)
    user = await (await server.store()).users.get(username)
    if user is None or (USER + user.name != owner and not owner.startswith(KEY)):
        raise NoSuchUser(username[:64])
    return give(server, USER + user.name)


@router.post("/user", operation_id="create_user", status_code=201, responses=responses(errors.Conflict))
async def create_user(server: TheServer, account: NewAccount) -> Account:
    """Makes an account, if the server lets anybody."""
    check_enabled(server)
    if not server.tokens.signup:
        raise Forbidden("this server makes no accounts for strangers")
    user = await (await server.store()).users.create(account.username, account.password)
    return Account(username=user.name)


def check_enabled(server: Server) -> None:
    if not server.config.auth.enabled:
        raise Forbidden("this server asks nobody who they are: no token is needed")


def give(server: Server, subject: str) -> Token:
    return Token(access_token=server.tokens.give(subject), expires_in=int(server.config.auth.lifetime))

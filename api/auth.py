"""Tokens: signed statements of who somebody is (JWT, RFC 7519), and what the environment says about them."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import jwt

from api.conf import AuthConf
from api.errors import ConfigError, Forbidden, Unauthorized

log = logging.getLogger(__name__)
ALGORITHM = "HS256"
SHORTEST = 32
"""Bytes: RFC 7518, 3.2 wants a key as long as the hash."""
USER, PUBLIC, KEY = "user:", "public:", "key:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What the environment may say; it adds to the TOML."""

    secret: str | None = None
    enable_signup: bool = False
    enable_public_token: bool = False


class Tokens:
    """Gives tokens and reads them. ``secret`` signs them; without one there is a development secret, good on loopback only."""

    def __init__(self, conf: AuthConf, environment: Environment, folder: Path) -> None:
        self.conf = conf
        self.signup = conf.enable_signup or environment.enable_signup
        self.public = conf.enable_public_token or environment.enable_public_token
        self.local = environment.secret is None
        self.folder = folder
        self.secret = environment.secret
        if conf.enabled and environment.secret is not None:
            check_secret(environment.secret)

    def open(self) -> None:
        """Makes the development secret, if one is needed; all workers of the host share it."""
        if self.conf.enabled and self.secret is None:
            self.secret = share_secret(self.folder / "development-secret")
            log.warning("SECRET_KEY is not set: tokens are signed with a development secret and taken from this host only")

    def give(self, subject: str) -> str:
        now = time.time()
        return jwt.encode({"sub": subject, "iat": int(now), "exp": int(now + self.conf.lifetime)}, self.key(), ALGORITHM)

    def read(self, token: str) -> str:
        """The token's subject. Raises ``Unauthorized``."""
        try:
            claims = jwt.decode(token, self.key(), [ALGORITHM], options={"require": ["sub", "exp"]})
        except jwt.ExpiredSignatureError:
            raise Unauthorized("the token has expired") from None
        except jwt.InvalidTokenError:
            raise Unauthorized("the token is not valid") from None
        return str(claims["sub"])

    def key(self) -> str:
        assert self.secret is not None  # since ``open``
        return self.secret

    def check_place(self, client: str | None, host: str | None) -> None:
        """Raises ``Forbidden`` where a development secret would protect nothing: the connection's ends are not both on loopback."""
        if self.local and not (is_loopback(client) and is_loopback(host)):
            raise Forbidden("this server has no SECRET_KEY and knows users of its own host only")


def check_secret(secret: str) -> None:
    if len(secret.encode()) < SHORTEST:
        found = len(secret.encode())
        raise ConfigError(f"SECRET_KEY: found {found} bytes; use at least {SHORTEST} random ones, such as `openssl rand -hex 32` prints")


def share_secret(path: Path) -> str:
    """The secret in the file, which the first who asks writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "w") as file:
        file.write(secrets.token_hex(32))
    try:
        os.link(part, path)  # fails where another worker was first
    except FileExistsError:
        pass
    finally:
        part.unlink()
    return path.read_text()


def is_loopback(address: str | None) -> bool:
    """Also for a Unix socket, which has no address."""
    try:
        return not address or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def read_flag(name: str, value: str | None) -> bool:
    """A truth value from the environment. Raises ``ConfigError``."""
    text = (value or "").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("", "0", "false", "no", "off"):
        return False
    raise ConfigError(f"{name}: found {text!r}; use 1 or 0")

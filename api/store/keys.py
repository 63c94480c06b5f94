"""Static API keys: random, so that a plain hash in the TOML is enough to know them by and useless to who reads it."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

from api.errors import ConfigError

PREFIX = "sha256:"
HASH = re.compile(r"sha256:[0-9a-f]{64}")
SHORTEST = 20
"""Characters; a shorter key can be guessed from its hash."""


def make_key() -> str:
    """A new key with 256 random bits."""
    return "sk-" + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What stands in the TOML. Raises ``ConfigError`` for a key that is too short."""
    if len(key) < SHORTEST:
        raise ConfigError(f"found an API key of {len(key)} characters; use at least {SHORTEST} random ones")
    return PREFIX + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def check_hash(value: str) -> str:
    """Raises ``ValueError`` where ``value`` is no hash made by ``hash_key``; a validator for the configuration."""
    if not HASH.fullmatch(value):
        raise ValueError("use 'sha256:' and 64 hexadecimal digits, the hash of the key and not the key itself")
    return value


def find_key(key: str, hashes: Mapping[str, str]) -> str | None:
    """The name whose hash is that of ``key``; every one is compared, so that the time tells nothing."""
    digest = PREFIX + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    found = None
    for name, value in hashes.items():
        if hmac.compare_digest(digest, value):
            found = name
    return found

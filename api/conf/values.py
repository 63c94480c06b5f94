"""What single values of the TOML may be."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

Precision = Literal["float32", "float16", "bfloat16"]


def check_gpu(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, int) and value >= -1):
        return value
    raise ValueError("use true, false or the index of a device (-1 is the CPU)")


def check_network(value: str) -> str:
    try:
        if value != "unix":
            ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError("must be an IP address, a network such as 10.0.0.0/8, or unix") from None
    return value


def check_hash(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise ValueError("use 'sha256:' and 64 hexadecimal digits, the hash of the key and not the key itself")
    return value


def check_path(value: object) -> object:
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("must be a path")
    return value


def check_names(value: dict[str, float]) -> dict[str, float]:
    if any(not name or "\0" in name for name in value):
        raise ValueError("must be paths with their weights")
    return value


def check_redis(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme not in ("redis", "rediss", "valkey", "valkeys", "unix") or not rest:
        raise ValueError("use redis://[:password@]host[:port][/number], rediss:// for TLS, or unix:///path")
    return value


def check_address(value: str) -> str:
    if "://" in value or ":" not in value:
        raise ValueError("use host:port of the cluster's head; web workers run on a host of the cluster, not through ray://")
    return value


def check_place(value: str) -> str:
    scheme, mark, rest = value.partition("://")
    if not (rest if mark and scheme else value.startswith("/")):
        raise ValueError("use an absolute path, or a URL such as s3://bucket/folder")
    return value


Gpu = Annotated[bool | Annotated[int, Field(ge=-1)], BeforeValidator(check_gpu)]
Network = Annotated[str, AfterValidator(check_network)]
Location = Annotated[Path, Field(strict=False), BeforeValidator(check_path)]
Weights = Annotated[dict[str, Annotated[float, Field(ge=-8, le=8, allow_inf_nan=False)]], AfterValidator(check_names)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Hash = Annotated[str, AfterValidator(check_hash)]
Place = Annotated[str, AfterValidator(check_place)]
RedisUrl = Annotated[str, AfterValidator(check_redis)]
Delay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Address = Annotated[str, AfterValidator(check_address)]

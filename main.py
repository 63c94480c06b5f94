"""The server's entry: `app` for uvicorn and gunicorn; `python main.py` serves it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from api import presence
from api.cluster import fill_in
from api.conf import Config, load_config
from api.engine.launch import launch_early
from api.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from api.auth import Environment


def read_config() -> Config:
    config = load_config(os.environ.get("STYLEGAN_TOML") or Path(__file__).parent / "default" / "config.toml")
    presence.settle(config.server.tmp_dir)
    return fill_in(config, os.environ.get("REDIS_HOST"), os.environ.get("REDIS_PORT"), os.environ.get("REDIS_PASSWORD"))


def read_environment() -> Environment:
    from api.auth import Environment, read_flag

    return Environment(
        secret=os.environ.get("SECRET_KEY") or None,
        enable_signup=read_flag("ENABLE_SIGNUP", os.environ.get("ENABLE_SIGNUP")),
        enable_public_token=read_flag("ENABLE_PUBLIC_TOKEN", os.environ.get("ENABLE_PUBLIC_TOKEN")),
    )


def read_port() -> int:
    text = os.environ.get("PORT") or "8000"
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ConfigError(f"PORT: found {text[:40]!r}; use a number from 1 to 65535")
    return int(text)


def build(config: Config | None = None) -> FastAPI:
    from api.app import create_app

    return create_app(config or read_config(), read_environment())


try:
    config = read_config()
    if __name__ == "__main__":
        port = read_port()
        launch_early(config)  # they import torch while FastAPI is imported here
    app = build(config)
except ConfigError as error:
    sys.stderr.write(f"{error.detail}\n")  # in one piece: gunicorn's workers say it at once
    raise SystemExit(2) from error

if __name__ == "__main__":
    import uvicorn

    from api.switch import Switch
    from guni.protocol import Protocol

    # Whom forwarding headers are believed is for the TOML to say, not for uvicorn.
    # And pictures do not get smaller when WebSockets compress them once more.
    uvicorn.run(
        Switch(app, build, config.server.tmp_dir),
        host=os.environ.get("HOST", "127.0.0.1"),
        port=port,
        http=Protocol,
        access_log=False,
        proxy_headers=False,
        ws_per_message_deflate=False,
    )

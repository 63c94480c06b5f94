"""What tells the engines of one configuration from those of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from api import __version__
from api.conf.tree import Config

WIRE = 2
"""Of the messages in api/engine/wire.py: an engine of other code speaks others, and new web workers need one of their own."""


def engine_digest(config: Config) -> str:
    """Names the engines of a configuration: it changes with all that changes what an engine loads or does."""
    models = {
        key: model.model_dump(mode="json", exclude={"relative", "gpu", "cluster"})
        | {
            "device": config.device(key),
            "lossy": config.lossy_of(key),
            "max_batch": model.max_batch or config.server.engine.max_batch,
            "precision": model.precision or config.server.engine.precision,
            "stamps": [list(stamps(path)) for path in [model.file, *(conf.file for conf in model.directions.values())]],
        }
        for key, model in config.models.items()
    }
    engine = config.server.engine.model_dump(mode="json", exclude={"max_batch", "precision", "deadline"})
    engine["trace"] = config.trace.model_dump(mode="json")
    return hashlib.sha256(json.dumps([__version__, WIRE, engine, models], sort_keys=True).encode()).hexdigest()[:16]


def stamps(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """What tells one content of a checkpoint (a file, or a folder of files) from another without reading it."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        try:
            stat = file.stat()
        except OSError:
            continue
        yield str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns, stat.st_ino

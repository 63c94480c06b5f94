"""Reading a file with a C library in a process of its own: a damaged file can make such a library loop for ever or crash.

The child has bounds on time and memory and hands arrays over as a safetensors file, the description as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import api
from api.errors import ConfigError
from api.models.base import Checkpoint, Description
from api.models.formats import safetensors

SECONDS = 60  # of computing; ten times what the largest file takes
MEMORY = 8 << 30
REFUSED = 3  # the child's exit status when it has said why


def confined(module: str, function: str, path: Path, seconds: int = SECONDS) -> Checkpoint:
    """What ``module.function(path)`` returns. Raises its ``ConfigError``, and another one if it does not come to an end."""
    code = f"from {__name__} import answer; answer()"
    # -P: the child imports from this project and its environment, not from the working directory.
    # Names of files may be any bytes: they go through the pipe as they came.
    names = {"PYTHONIOENCODING": "utf-8:surrogateescape"}
    environment = os.environ | names | {"PYTHONPATH": str(Path(api.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory() as folder:
        target = Path(folder) / "checkpoint"
        command = [sys.executable, "-P", "-c", code, module, function, str(path.absolute()), str(target), str(seconds)]
        child = subprocess.run(command, check=False, capture_output=True, env=environment, stdin=subprocess.DEVNULL)
        if child.returncode == REFUSED:
            raise ConfigError(child.stdout.decode("utf-8", "surrogateescape").replace(str(path.absolute()), str(path)))
        if child.returncode:
            how = f"was ended by signal {-child.returncode}" if child.returncode < 0 else child.stderr.decode("utf-8", "replace")[-500:]
            raise ConfigError(f"{path}: cannot be read, the file is damaged: its reader {how}")
        told = json.loads(child.stdout)
        description = Description(**told | {key: None if told[key] is None else tuple(told[key]) for key in ("labels", "notes")})
        return Checkpoint(description=description, tensors=safetensors.read(target).tensors if target.exists() else {})


def answer() -> None:
    """The child's side: reads as the command line tells and writes the result."""
    module, function, path, target, seconds = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        checkpoint: Checkpoint = getattr(import_module(module), function)(Path(path))
    except ConfigError as error:
        sys.stdout.write(str(error))
        sys.exit(REFUSED)
    if checkpoint.tensors:
        safetensors.write(Path(target), checkpoint)
    json.dump(asdict(checkpoint.description), sys.stdout)

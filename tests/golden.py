"""Where data that is not part of the project lies; tests that need it skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).resolve().parents[2] / "shared" / "golden"))
MNIST = GOLDEN.parent / "models" / "mnist.hdf5"


def arrays(name: str) -> dict[str, Any]:
    """The arrays of ``<name>.npz``; skips the test if there are none."""
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no golden data at {path}; set GOLDEN_DIR")
    with np.load(path) as file:
        return {key: file[key] for key in file}


def mnist() -> Path:
    if not MNIST.exists():
        pytest.skip(f"no checkpoint at {MNIST}; set GOLDEN_DIR")
    return MNIST

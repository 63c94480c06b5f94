"""Tiny random Precure checkpoints."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from api.models.base import Array, Checkpoint, Description
from api.models.formats import hdf5, safetensors


def tiny_precure(
    path: Path,
    *,
    categories: int = 0,
    levels: int = 3,
    seed: int = 0,
    size: int = 16,
    depth: int = 2,
    first_channels: int = 16,
    last_channels: int = 8,
) -> Checkpoint:
    """Writes a network of 2^(levels+1) squared with classes ``cat0``, ``cat1``, … to ``path``: HDF5 if it is so named, else safetensors."""
    arguments = {"size": size, "depth": depth, "levels": levels, "categories": categories}
    arguments |= {"first_channels": first_channels, "last_channels": last_channels}
    random = np.random.default_rng(seed)
    tensors = {name: parameter(random, name, shape) for name, (_, shape) in hdf5.layout(arguments).items()}
    labels = tuple(f"cat{i}" for i in range(categories)) if categories > 1 else None
    description = Description(format="safetensors", family="precure", arguments=arguments, labels=labels, tensors=len(tensors))
    checkpoint = Checkpoint(description=description, tensors=tensors)
    (hdf5 if path.suffix in (".hdf5", ".h5") else safetensors).write(path, checkpoint)
    return checkpoint


def parameter(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    """Values under which pictures are neither flat nor clipped everywhere."""
    values = random.standard_normal(shape, np.float32)
    if name.endswith("affine.bias"):
        return 1 + 0.1 * values
    if name.endswith("rgb.bias"):
        return values * np.float32(0.1) + np.float32(0.5 if ".0." in name else 0)  # the levels' pictures are summed
    if name.endswith(("bias", "strength")):
        return 0.2 * values
    return values * np.float32(0.05) if name.endswith("rgb.weight") else values


def loop(path: Path) -> Checkpoint:
    """A reader that never ends."""
    while path.exists():
        pass
    raise AssertionError


def crash(path: Path) -> Checkpoint:
    """A reader that takes its process down."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError

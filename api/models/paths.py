"""Paths through points: (n, …) points and a number of frames ↦ (frames, …), float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from api.models.jobs import Floats

TINY = 1e-6


def linear(points: Floats, frames: int) -> Floats:
    """Straight from point to point, from the first to the last."""
    a, b, t = pieces(points, frames)
    return ((1 - t) * a + t * b).astype(np.float32)


def spherical(points: Floats, frames: int) -> Floats:
    """Along great circles from point to point (Shoemake, "Animating rotation with quaternion curves", 1985), lengths linearly.

    Latents of many dimensions lie near a sphere; a straight line would leave it.
    """
    a, b, t = pieces(points, frames)
    long_a, long_b = length(a), length(b)
    a, b = a / np.maximum(long_a, TINY), b / np.maximum(long_b, TINY)
    angle = np.arccos(np.clip((a * b).sum(axis=-1, keepdims=True), -1, 1))
    sine = np.sin(angle)
    flat = sine < TINY  # the same direction, or opposite ones, between which no way is shortest
    safe = np.where(flat, 1, sine)
    left = np.where(flat, 1 - t, np.sin((1 - t) * angle) / safe)
    right = np.where(flat, t, np.sin(t * angle) / safe)
    return ((left * a + right * b) * ((1 - t) * long_a + t * long_b)).astype(np.float32)


def closed(points: Floats, frames: int) -> Floats:
    """A smooth loop through all points, the first one at frame 0: the cubic of Catmull and Rom (1974)."""
    where = np.arange(frames) * len(points) / frames
    i = where.astype(int)
    t = along(where - i, points)
    p0, p1, p2, p3 = (np.asarray(points, np.float64)[(i + offset) % len(points)] for offset in (-1, 0, 1, 2))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).astype(np.float32)


def keep_lengths(path: Floats, points: Floats) -> Floats:
    """A closed path whose lengths go linearly from point to point, so that latents stay as likely as the points are."""
    lengths = length(np.asarray(points, np.float64))
    wanted = linear(np.concatenate([lengths, lengths[:1]]), len(path) + 1)[:-1]
    return (path * (wanted / np.maximum(length(path), TINY))).astype(np.float32)


def pieces(points: Floats, frames: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For each frame the points around it, and how far it is from the one to the other."""
    where = np.linspace(0, len(points) - 1, frames)
    i = np.minimum(where.astype(int), len(points) - 2)
    double = np.asarray(points, np.float64)
    return double[i], double[i + 1], along(where - i, points)


def along(t: NDArray[np.float64], points: Floats) -> NDArray[np.float64]:
    return t.reshape(-1, *[1] * (points.ndim - 1))


def length(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.linalg.norm(rows, axis=-1, keepdims=True).astype(np.float64)

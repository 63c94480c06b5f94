"""How features lie in w: an orthonormal frame chosen once, so that a style can be computed from what it is to show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SEED = 64  # the frame belongs to the recipe: all of its networks share one


@dataclass(frozen=True)
class Frame:
    """w = (features - mean) / deviation · axes (+ a class's row of ``classes``); all rows are orthogonal to each other."""

    mean: Tensor  # (features,)
    deviation: Tensor  # (features,)
    axes: Tensor  # (features, size)
    classes: Tensor  # (categories, size)

    @staticmethod
    def make(rows: Tensor, size: int, generator: torch.Generator, categories: int = 0, apart: float = 5.0) -> Frame:
        """From sample features (N, features); classes lie ``apart`` standard deviations of a feature from the middle."""
        count = rows.shape[1]
        axes = torch.linalg.qr(torch.randn(size, count + categories, generator=generator))[0].T
        axes = axes * (size / (count + (apart**2 if categories else 0))) ** 0.5  # w then has a mean square of about one
        return Frame(rows.mean(0), rows.std(0), axes[:count], axes[count:] * apart)

    def styles(self, rows: Tensor) -> Tensor:
        """Features (…, features) ↦ w (…, size), without the class's part."""
        return (rows - self.mean) / self.deviation @ self.axes

    def direction(self, change: Tensor) -> Tensor:
        """The w (size,) that changes the features by ``change`` (features,)."""
        return change / self.deviation @ self.axes

    def features(self, ws: Tensor) -> Tensor:
        """The features (…, features) of w (…, size): the inverse of ``styles``."""
        return ws @ self.axes.T / self.axes[0].square().sum() * self.deviation + self.mean

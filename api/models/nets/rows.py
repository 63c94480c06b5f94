"""Matrix products and convolutions whose results for one row do not depend on how many rows there are.

Libraries choose other kernels, with another order of summation, for one row than for many. A picture must not depend on its
neighbours in a batch, so rows of matrix products are always computed in groups of the same size, the last one filled up, and small
convolutions of one picture are computed as two. Threads must not change sums either: a model may be computed by one core or by several.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

GROUP = 8
NARROW = 24  # outputs up to which MKL sums groups of 8 rows in an order that depends on its threads
SMALL = 20_480  # numbers in a picture up to which torch convolves one picture on a CPU by other code than several


def convolve(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function``, a convolution, of x (N, C, H, W), by the same code for every N."""
    if len(x) > 1 or x.is_cuda or x[0].numel() > SMALL:
        return function(x)
    return function(x.expand(2, -1, -1, -1).contiguous(memory_format=torch.channels_last))[:1]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, in) ↦ (N, out), as ``F.linear``; row i is the same bits for every N and number of threads."""
    count = x.shape[0]
    if torch.is_grad_enabled() and x.requires_grad:
        return F.linear(x, weight, bias)
    width, fill = weight.shape[0], -count % GROUP
    if width < NARROW and not x.is_cuda:
        weight = F.pad(weight, (0, 0, 0, NARROW - width))
        bias = None if bias is None else F.pad(bias, (0, NARROW - width))
    padded = torch.cat([x, x.new_zeros(fill, x.shape[1])]) if fill else x
    groups = [F.linear(group, weight, bias) for group in padded.split(GROUP)]
    return torch.cat(groups)[:count, :width]

"""Networks whose rows do not feel how many others are computed with them.

On CPUs matrix products and convolutions choose their kernels, and with them the order of summation, by the whole batch. Linear
layers as one product per row, convolutions over pixels with channels last, and never fewer than ``ROWS`` rows give the same bits in
any company; on GPUs the libraries promise nothing of the kind.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

ROWS = 2


def steady(network: nn.Module) -> nn.Module:
    """The same network, its linear layers computed row by row and its convolutions with channels last."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.forward = partial(multiply_rows, module)  # type: ignore[method-assign]
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def multiply_rows(layer: nn.Linear, x: Tensor) -> Tensor:
    """(N, …, inputs) ↦ (N, …, outputs), each of the N by itself."""
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    weight = layer.weight.T.expand(len(rows), -1, -1)
    y = torch.bmm(rows, weight) if layer.bias is None else torch.baddbmm(layer.bias, rows, weight)
    return y.view(*x.shape[:-1], -1)

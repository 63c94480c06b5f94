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
    """(N, …, inputs) ↦ (N, …, outputs), each of the N by itself.

    Called a thousand times for a picture: no view more than needed, and nothing by way of ``nn.Module.__getattr__``, which together
    were 2 % of a small network's time.
    """
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    rows = x if x.dim() == 3 else x.reshape(x.shape[0], -1, x.shape[-1])
    matrices = weight.T.expand(rows.shape[0], -1, -1)
    y = torch.bmm(rows, matrices) if bias is None else torch.baddbmm(bias, rows, matrices)
    return y if x.dim() == 3 else y.view(*x.shape[:-1], -1)

"""A StyleGAN2 with random weights against plain convolutions of the same arithmetic.

The roof is the time of the network's 3×3 convolutions alone: each as one dense ``conv2d`` of the same channels, over as many places as the
network's own has (an upsampling layer's has a quarter of its output's), in the memory layout that is faster here. The fraction is
the roof's time over the network's, both taken in turns so that other work on the machine meets both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from api.models.nets.stylegan2 import Generator

CHANNEL_BASE, CHANNEL_MAX = 32_768, 512  # configuration F of the paper


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    dtype = getattr(torch, options.precision)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}, {dtype}")
    for size in options.sizes:
        network = make(size, device, dtype)
        print(f"{size}²: {arithmetic(network) / 1e9:.1f} GFLOP in 3×3 convolutions per picture")
        for batch in options.batches:
            report(network, batch, dtype, options.rounds)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench stylegan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="sides of the pictures")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each; the median counts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "float16", "bfloat16"])
    return parser.parse_args(argv)


def make(size: int, device: torch.device, dtype: torch.dtype) -> Generator:
    widths = [min(CHANNEL_BASE // (4 << i), CHANNEL_MAX) for i in range(size.bit_length() - 2)]
    half = 0 if dtype == torch.float32 else 4
    return Generator(size=size, widths=widths, half_levels=half).to(device).freeze(dtype)


def layers(network: Generator) -> list[tuple[int, int, int]]:
    """(inputs, outputs, side of the places) of each 3×3 convolution."""
    found = []
    for block in network.synthesis.blocks:
        for layer in (block.conv0, block.conv1):
            if layer is not None:
                outputs, inputs = layer.weight.shape[:2]
                found.append((inputs, outputs, block.side // 2 if layer.up else block.side))
    return found


def arithmetic(network: Generator) -> float:
    return sum(2.0 * 9 * inputs * outputs * side * side for inputs, outputs, side in layers(network))


@torch.inference_mode()
def report(network: Generator, batch: int, dtype: torch.dtype, rounds: int) -> None:
    z = torch.randn(batch, 512, device=network.mapping.w_avg.device)
    ws = network.mapping(z)[:, None].expand(-1, network.synthesis.num_ws, -1)
    noise = network.synthesis.constants()
    plain = roof(network, batch)
    spent: dict[str, list[float]] = {"network": [], "roof": []}
    for _ in range(rounds + 1):
        spent["network"].append(clock(lambda: network.synthesis(ws, noise, dtype), z))
        spent["roof"].append(clock(plain, z))
    seconds = {name: statistics.median(times[1:]) for name, times in spent.items()}
    rate = arithmetic(network) * batch / seconds["network"] / 1e9
    each = {name: 1e3 * value / batch for name, value in seconds.items()}
    print(
        f"  batch {batch}: {1e3 / each['network']:.3f} pictures/s, {each['network']:.0f} ms each, {rate:.0f} GFLOP/s; "
        f"roof {each['roof']:.0f} ms each; fraction {each['roof'] / each['network']:.2f}",
        flush=True,
    )


def roof(network: Generator, batch: int) -> Callable[[], None]:
    """Runs all convolutions once, on tensors that are made each time, as the network's are."""
    device = network.mapping.w_avg.device
    weights = [torch.randn(outputs, inputs, 3, 3, device=device) for inputs, outputs, _ in layers(network)]
    weights = [weight.contiguous(memory_format=torch.channels_last) for weight in weights]
    inputs = [torch.randn(batch, inputs, side, side, device=device) for inputs, _, side in layers(network)]
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]

    def run() -> None:
        for x, weight in zip(inputs, weights, strict=True):
            F.conv2d(x, weight, padding=1)

    return run


def clock(function: Callable[[], Tensor | None], like: Tensor) -> float:
    begin = time.perf_counter()
    function()
    if like.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin

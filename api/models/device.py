"""Devices in torch's words, and how torch is to use them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys

import torch

from api.errors import ConfigError


def check_device(device: str) -> str:
    """The device itself if it can be used here. Raises ``ConfigError`` otherwise."""
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index.isdigit():
        raise ConfigError(f'device {device!r} is unknown; "cpu" and "cuda:0", "cuda:1", … are known')
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index) >= count:
        found = f"GPUs 0 to {count - 1} are" if count else "none is"
        raise ConfigError(f"GPU {index} is asked for and {found} usable here; set gpu = false for the CPU")
    return device


def release_memory(device: str) -> None:
    """Gives what a model that has gone left behind back to the system, or to the GPU."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # other C libraries than glibc have no such call
            ctypes.CDLL(None).malloc_trim(0)


def prepare_device(device: str, threads: int = 0) -> int:
    """Sets torch up for one process that serves ``device``: CPU threads (0: one per usable core), and the same bytes every time.

    Answers how many batches the device computes at a time: one per core of a CPU, one on a GPU.
    """
    check_device(device)
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    if device == "cpu":
        return threads
    torch.cuda.set_device(device)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return 1


def use_cores(count: int) -> None:
    """The kernels of the calling thread take so many cores. MKL's products in other threads are meant too: let none run meanwhile."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)

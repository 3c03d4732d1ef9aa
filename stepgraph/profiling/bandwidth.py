"""How fast this machine copies memory: what the bytes of a node are measured against."""

from __future__ import annotations

import functools
import time

import torch

_BYTES = 128 * 2**20  # more than caches hold
_COPIES = 5


def copy_gbps(device: str) -> float:
    """Return the billions of bytes that a copy reads and writes in a second, the best of a few.

    Measured once in a process for each device and number of threads; takes a tenth of a second,
    and 256 MiB for as long.
    """
    return _measured(device, torch.get_num_threads())


@functools.cache
def _measured(device: str, threads: int) -> float:
    source = torch.ones(_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    best_s = float("inf")
    for _ in range(_COPIES + 1):  # the first one touches the memory for the first time
        wait()
        start = time.perf_counter()
        target.copy_(source)
        wait()
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * _BYTES / best_s / 1e9


def _nothing() -> None:
    """Wait for nothing."""

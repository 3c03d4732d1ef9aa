"""Copy bandwidth of this machine, the reference for the GB/s of nodes and operators."""

from __future__ import annotations

import functools

import torch

from stepgraph.profiling.clock import timed

_BYTES = 128 * 2**20  # more than caches hold
_COPIES = 5


def copy_gbps(device: str) -> float:
    """Return the bandwidth of a large copy: billions of bytes read and written per second.

    Measured once in a process for each device and number of threads, as the best of five copies.
    Takes about 0.1 s and 256 MiB.
    """
    return _measured(device, torch.get_num_threads())


@functools.cache
def _measured(device: str, threads: int) -> float:
    source = torch.ones(_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best_ns = float("inf")
    for _ in range(_COPIES + 1):  # the first copy maps the pages of `target`
        start, end = timed(lambda: target.copy_(source), device)
        best_ns = min(best_ns, end - start)
    return 2 * _BYTES / best_ns

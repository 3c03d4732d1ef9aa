"""Time on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import quantiles

import torch


def milliseconds(
    work: Callable[[], object], device: torch.device, *, warmup: int, repeats: int
) -> dict[str, float]:
    """Run `work` and return the median and the 20 and 80 percent quantiles of its time.

    Each repeat is timed on its own, from an idle device, so the host's share is in it: a step that
    takes the host longer than the device is as slow for its user.
    """
    for _ in range(warmup):
        work()
    times = [_once(work, device) for _ in range(max(2, repeats))]
    cut = quantiles(times, n=10)
    return {"median_ms": cut[4], "low_ms": cut[1], "high_ms": cut[7]}


def _once(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize(device)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    torch.cuda.synchronize(device)
    return float(before.elapsed_time(after))


def copy_gbps(device: torch.device) -> float:
    """Bandwidth of a large copy, bytes read plus bytes written, in GB/s: the roof."""
    elements = 2**28 if device.type == "cuda" else 2**20
    source = torch.ones(elements, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    took = milliseconds(lambda: target.copy_(source), device, warmup=3, repeats=20)
    return 8 * elements / took["median_ms"] / 1e6

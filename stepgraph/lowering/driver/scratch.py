"""Where the memories of a wrapper lie in one block that is kept between calls."""

from __future__ import annotations

from math import prod

from stepgraph.torch_private import Memory, Strided, Wrapper

_ALIGNED = 64
"""Bytes: what torch aligns its own memory to."""


def place(wrapper: Wrapper) -> tuple[dict[Memory, int], int]:
    """Return the place of every memory that neither comes from outside nor goes there.

    Memories share bytes only if one is used for the last time before the other's first use.

    Returns:
        The first byte of each, and how many bytes they take together.
    """
    outside = {result.memory for result in wrapper.results}
    first: dict[Memory, int] = {}
    last: dict[Memory, int] = {}
    sizes: dict[Memory, int] = {}
    for time, call in enumerate(wrapper.calls):
        for tensor in call.arguments:
            memory = tensor.memory
            if memory.source is None and memory not in outside:
                first.setdefault(memory, time)
                last[memory] = time
                sizes[memory] = max(sizes.get(memory, 0), end_bytes(tensor))
    places: dict[Memory, int] = {}
    for memory in first:
        alive = sorted(
            (places[other], places[other] + sizes[other])
            for other in places
            if last[other] >= first[memory]
        )
        places[memory] = _first_gap(alive, sizes[memory])
    total = max((places[memory] + sizes[memory] for memory in places), default=0)
    return places, total


def end_bytes(tensor: Strided) -> int:
    """Return how many bytes a memory must have for a tensor that lies in it."""
    if prod(tensor.size) == 0:
        return 0
    farthest = sum((n - 1) * stride for n, stride in zip(tensor.size, tensor.stride, strict=True))
    return (tensor.offset + farthest + 1) * tensor.dtype.itemsize


def _first_gap(alive: list[tuple[int, int]], size: int) -> int:
    """Return the first aligned place between sorted intervals that leaves `size` bytes."""
    place = 0
    for start, end in alive:
        if place + size <= start:
            break
        place = max(place, -(-end // _ALIGNED) * _ALIGNED)
    return place

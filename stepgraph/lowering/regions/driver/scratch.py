"""The offsets of the intermediate memories of a wrapper in one block, kept between calls."""

from __future__ import annotations

from stepgraph.torch_private import Memory, Wrapper

_ALIGNED = 64
"""Alignment in bytes, the same as torch's allocator."""


def assign_offsets(wrapper: Wrapper) -> tuple[dict[Memory, int], int]:
    """Return the offset of every memory that is neither an input nor a result.

    Memories share bytes only if one is used for the last time before the other's first use.

    Returns:
        The first byte of each, and the size of the block.
    """
    outside = {result.memory for result in wrapper.results}
    first: dict[Memory, int] = {}
    last: dict[Memory, int] = {}
    for time, call in enumerate(wrapper.calls):
        for tensor in call.arguments:
            memory = tensor.memory
            if memory.source is None and memory not in outside:
                first.setdefault(memory, time)
                last[memory] = time
    offsets: dict[Memory, int] = {}
    for memory in first:
        alive = sorted(
            (offsets[other], offsets[other] + other.size_bytes)
            for other in offsets
            if last[other] >= first[memory]
        )
        offsets[memory] = _first_gap(alive, memory.size_bytes)
    return offsets, max((start + memory.size_bytes for memory, start in offsets.items()), default=0)


def _first_gap(alive: list[tuple[int, int]], size: int) -> int:
    """Return the first aligned offset between sorted intervals with `size` free bytes."""
    place = 0
    for start, end in alive:
        if place + size <= start:
            break
        place = max(place, -(-end // _ALIGNED) * _ALIGNED)
    return place

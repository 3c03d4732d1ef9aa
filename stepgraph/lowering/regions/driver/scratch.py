"""Where the memories of a wrapper lie in one block that is kept between calls."""

from __future__ import annotations

from stepgraph.torch_private import Memory, Wrapper

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
    for time, call in enumerate(wrapper.calls):
        for tensor in call.arguments:
            memory = tensor.memory
            if memory.source is None and memory not in outside:
                first.setdefault(memory, time)
                last[memory] = time
    places: dict[Memory, int] = {}
    for memory in first:
        alive = sorted(
            (places[other], places[other] + other.size_bytes)
            for other in places
            if last[other] >= first[memory]
        )
        places[memory] = _first_gap(alive, memory.size_bytes)
    return places, max((place + memory.size_bytes for memory, place in places.items()), default=0)


def _first_gap(alive: list[tuple[int, int]], size: int) -> int:
    """Return the first aligned place between sorted intervals that leaves `size` bytes."""
    place = 0
    for start, end in alive:
        if place + size <= start:
            break
        place = max(place, -(-end // _ALIGNED) * _ALIGNED)
    return place

"""When the marks of a call were reached: by the host's clock, or by the device's."""

from __future__ import annotations

import time
from typing import Any

import torch


class HostClock:
    """Reads the clock of the process: a CPU is done with an operator when the call returns."""

    def __init__(self) -> None:
        self._times: list[int] = []

    def mark(self, index: int) -> None:
        """Note the time."""
        self._times.append(time.perf_counter_ns())

    def take(self) -> list[int]:
        """Return the marks since the last time, in nanoseconds, and forget them."""
        taken, self._times[:] = list(self._times), []
        return taken


class CudaClock:
    """Lets the device note when it comes to a mark, by events in its stream; it never waits.

    A time between two marks holds what the device did for the node, and what it waited for the
    host to send it.
    """

    def __init__(self) -> None:
        self._started = 0
        self._events: list[Any] = []

    def mark(self, index: int) -> None:
        """Put an event into the stream."""
        if not self._events:
            self._started = time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def take(self) -> list[int]:
        """Wait for the device; return the marks since the last time and forget them.

        Nanoseconds of the host's clock, where the first mark is when the host came to it.
        """
        if not self._events:
            return []
        torch.cuda.synchronize()
        first = self._events[0]
        times = [self._started + int(first.elapsed_time(e) * 1e6) for e in self._events[1:]]
        self._events = []
        return [self._started, *times]


def clock_for(device: str) -> HostClock | CudaClock:
    """Return the clock for a type of device."""
    return CudaClock() if device == "cuda" else HostClock()

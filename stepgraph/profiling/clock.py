"""Clocks for the marks inside of a call, and the duration of a whole call."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class HostClock:
    """Reads the clock of the process at each mark: a CPU operator ends before its call returns."""

    def __init__(self) -> None:
        self._times: list[int] = []

    def mark(self, index: int) -> None:
        """Record the time."""
        self._times.append(time.perf_counter_ns())

    def take(self) -> list[int]:
        """Return the times of the marks since the last `take`, in nanoseconds, and forget them."""
        taken, self._times[:] = list(self._times), []
        return taken


class CudaClock:
    """Records an event in the CUDA stream at each mark; marks never synchronize.

    The time between two marks contains the device's work for the node and the device's wait for
    the host's next launch.
    """

    def __init__(self) -> None:
        self._started = 0
        self._events: list[Any] = []

    def mark(self, index: int) -> None:
        """Record an event in the stream."""
        if not self._events:
            self._started = time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def take(self) -> list[int]:
        """Synchronize; return the times of the marks since the last `take` and forget them.

        Nanoseconds of the host's clock; the first one is the host's time at the first mark.
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


def timed(call: Callable[[], Any], device: str) -> tuple[int, int]:
    """Return start and end of a call in nanoseconds, each after the device has synchronized."""
    synchronize(device)
    start = time.perf_counter_ns()
    call()
    synchronize(device)
    return start, time.perf_counter_ns()


def synchronize(device: str) -> None:
    """Wait until a type of device has run all its launches; a CPU has when a call returns."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_of(inputs: Sequence[Any]) -> str:
    """Return the first type of device among the inputs other than the CPU, else `cpu`."""
    types = [value.device.type for value in inputs if isinstance(value, Tensor)]
    return next((kind for kind in types if kind != "cpu"), "cpu")


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Scope in which Python's garbage collector does not run."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

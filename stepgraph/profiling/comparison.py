"""One step in several ways, side by side: eagerly, and compiled by each backend."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stepgraph.compiler import CompiledStep
from stepgraph.compiler.probe import Probe, with_backend
from stepgraph.errors import ConfigurationError
from stepgraph.profiling.measure import device_of, waiting_for, without_collections
from stepgraph.profiling.result import Timing, plain
from stepgraph.profiling.text import columns


@dataclass(frozen=True)
class Way:
    """A way to run a step.

    Attributes:
        name: `eager` for the user's Python, else for example `compiled, inductor`.
        time: How long a call takes; None if the step cannot be run in this way.
        ready_ms: Time until it was captured and compiled; None for the user's Python.
        why: Why there is no time, or empty.
    """

    name: str
    time: Timing | None
    ready_ms: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """What the ways to run a step take; prints itself.

    Attributes:
        name: The step's name.
        device: Where it ran.
        threads: Threads of torch on the CPU.
        ways: The user's Python first.
    """

    name: str
    device: str
    threads: int
    ways: tuple[Way, ...]

    @property
    def complete(self) -> bool:
        """Whether the step runs in all ways."""
        return all(way.time is not None for way in self.ways)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as dicts, lists, strings and numbers."""
        return dict(plain(dataclasses.asdict(self)))

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        where = f"cpu, {self.threads} thread{plural}" if self.device == "cpu" else self.device
        calls = max((way.time.calls for way in self.ways if way.time), default=0)
        head = f"{self.name}: medians of {calls} calls each, in turns; {where}"
        rows = [("", "ms", "spread", "of eager", "ready after"), *self._rows()]
        refused = [f"  {way.name}: {way.why}" for way in self.ways if way.time is None]
        return "\n".join([head, *columns(rows, left=(0,)), *refused])

    def _rows(self) -> Iterator[tuple[str, ...]]:
        eager = self.ways[0].time
        for way in self.ways:
            if way.time is None or eager is None:
                continue
            yield (
                way.name,
                f"{way.time.median_ms:.3f}",
                f"{way.time.low_ms:.3f} to {way.time.high_ms:.3f}",
                f"{eager.median_ms / way.time.median_ms:.2f} x",
                "" if way.ready_ms is None else f"{way.ready_ms / 1e3:.1f} s",
            )


def compare(
    step: CompiledStep,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    backends: Sequence[str],
    steps: int,
) -> Comparison:
    """Measure calls of a step eagerly and compiled by each backend, in turns.

    What a call writes is put back after it. Capturing takes calls that train.

    Args:
        step: The step; its options are kept, but for the backend.
        args: Arguments of the calls.
        kwargs: More arguments.
        backends: Backends to compile with.
        steps: Measured calls of each kind.

    Raises:
        ConfigurationError: No backend captures the step.
    """
    rivals = [_Rival(step, backend, tuple(args), kwargs) for backend in backends]
    probes = [rival.probe for rival in rivals if rival.probe is not None]
    if not probes:
        raise ConfigurationError(
            f"{rivals[0].name} has nothing to compare",
            found=rivals[0].why,
            why="eager calls are measured beside compiled ones",
            hint="explain says what to change",
        )
    times: dict[str, list[int]] = {"eager": [], **{rival.title: [] for rival in rivals}}
    turns = [("eager", probes[0], probes[0].eager)]
    turns += [(r.title, r.probe, r.probe.replay) for r in rivals if r.probe is not None]
    device = device_of(probes[0].inputs)
    with without_collections():
        for _ in range(steps + 1):
            for name, probe, call in turns:
                times[name].append(_measured(probe, call, waiting_for(device)))
            turns.append(turns.pop(0))
    eager = Way("eager", Timing.of(times["eager"][1:]))
    return Comparison(
        name=probes[0].name,
        device=device,
        threads=torch.get_num_threads(),
        ways=(eager, *(rival.way(times[rival.title][1:]) for rival in rivals)),
    )


class _Rival:
    """The step, compiled by one backend; or why it is not."""

    def __init__(
        self, step: CompiledStep, backend: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.title, self.why = f"compiled, {backend}", ""
        self.probe: Probe | None = None
        own = with_backend(step, backend)
        self.name = own.explain().name
        start = time.perf_counter()
        try:
            self.probe = Probe(own, args, kwargs)
            with self.probe.unchanged():
                self.probe.replay()  # regions are tried beside eager in their first call
        except ConfigurationError as error:
            self.why = error.found or error.what
        self.ready_ms = (time.perf_counter() - start) * 1e3

    def way(self, times: list[int]) -> Way:
        """Return what was measured of it."""
        if self.probe is None:
            return Way(self.title, None, None, self.why)
        return Way(self.title, Timing.of(times), self.ready_ms)


def _measured(probe: Probe, call: Callable[[], Any], wait: Callable[[], Any]) -> int:
    """Return the nanoseconds that a call takes; what it writes is put back."""
    with probe.unchanged():
        wait()
        start = time.perf_counter_ns()
        call()
        wait()
        return time.perf_counter_ns() - start

"""Compare the speed of a step in eager mode and compiled by each backend."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stepgraph.compiler import CompiledStep
from stepgraph.compiler.compile import with_backend
from stepgraph.compiler.probe import Probe
from stepgraph.errors import ConfigurationError
from stepgraph.profiling.clock import device_of, timed, without_garbage_collection
from stepgraph.profiling.measurements import Timing, plain
from stepgraph.profiling.text import columns, device_text


@dataclass(frozen=True)
class Way:
    """One way to run a step: eagerly, or compiled by one backend.

    Attributes:
        name: `eager`, or for example `compiled, inductor`.
        time: Duration of a call; None if the step cannot run in this way.
        ready_ms: Time until the step was captured and compiled; None for `eager`.
        why: Reason for the missing time, or empty.
    """

    name: str
    time: Timing | None
    ready_ms: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """Durations of one step in several ways; prints itself as a table.

    Attributes:
        name: The step's name.
        device: Type of device it ran on.
        threads: Number of torch's CPU threads.
        ways: The ways, `eager` first.
    """

    name: str
    device: str
    threads: int
    ways: tuple[Way, ...]

    @property
    def complete(self) -> bool:
        """Whether every way has a time."""
        return all(way.time is not None for way in self.ways)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as dicts, lists, strings and numbers."""
        return dict(plain(dataclasses.asdict(self)))

    def __str__(self) -> str:
        where = device_text(self.device, self.threads)
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

    State that a measured call writes is restored after it. Capturing needs calls that train.

    Args:
        step: The step. Its options other than the backend apply to every compiled way.
        args: Positional arguments of the calls.
        kwargs: Keyword arguments of the calls.
        backends: Backends to compile with.
        steps: Number of measured calls of each way.

    Raises:
        ConfigurationError: No backend captures the step.
    """
    candidates = [_Candidate(step, backend, tuple(args), kwargs) for backend in backends]
    probes = [one.probe for one in candidates if one.probe is not None]
    if not probes:
        raise ConfigurationError(
            f"{candidates[0].name} is not captured by any backend",
            found=candidates[0].why,
            why="eager calls are measured beside compiled calls",
            hint="explain() names the reason and a change that removes it",
        )
    times: dict[str, list[int]] = {"eager": [], **{one.title: [] for one in candidates}}
    turns = [("eager", probes[0], probes[0].eager)]
    turns += [(one.title, one.probe, one.probe.replay) for one in candidates if one.probe]
    device = device_of(probes[0].inputs)
    with without_garbage_collection():
        for _ in range(steps + 1):
            for name, probe, call in turns:
                with probe.unchanged():
                    start, end = timed(call, device)
                times[name].append(end - start)
            turns.append(turns.pop(0))
    eager = Way("eager", Timing.of(times["eager"][1:]))
    return Comparison(
        name=probes[0].name,
        device=device,
        threads=torch.get_num_threads(),
        ways=(eager, *(one.way(times[one.title][1:]) for one in candidates)),
    )


class _Candidate:
    """The step compiled by one backend, or the reason why it cannot be."""

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
                self.probe.replay()  # the first call compares regions with eager
        except ConfigurationError as error:
            self.why = error.found or error.what
        self.ready_ms = (time.perf_counter() - start) * 1e3

    def way(self, times: list[int]) -> Way:
        """Return this way with its measured times, in nanoseconds."""
        if self.probe is None:
            return Way(self.title, None, None, self.why)
        return Way(self.title, Timing.of(times), self.ready_ms)

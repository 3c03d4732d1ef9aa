"""Measure a step: eagerly, compiled, and compiled node by node, in turns."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.analysis import flops_of, peak
from stepgraph.capture import Subject
from stepgraph.compiler.probe import Probe
from stepgraph.errors import ConfigurationError
from stepgraph.lowering import Region, Section, sections
from stepgraph.profiling.result import NodeProfile, Profile, Timing
from stepgraph.profiling.trace import ROWS, Span
from stepgraph.profiling.traffic import bytes_moved

_EAGER, _COMPILED, _MARKED = ROWS


def profile(probe: Probe, steps: int) -> Profile:
    """Measure a call of a step `steps` times in each way; see `CompiledStep.profile`.

    The three ways take turns, so that a machine that is busy for a while slows all of them. Every
    call starts from the same state, and one round ahead of the measured ones warms caches up. No
    garbage is collected in between.

    Raises:
        ConfigurationError: `steps` is no number of calls, or a call did not replay.
    """
    if type(steps) is not int or steps < 1:
        raise ConfigurationError(
            "a profile needs calls to measure",
            found=f"steps={steps!r}",
            hint="a whole number of at least 1",
        )
    cut = sections(probe.lowered)
    runs = _Runs(probe)
    with _without_collections():
        for _ in range(steps + 1):
            runs.round()
    runs.drop_first_round()
    return _summary(probe, cut, runs)


class _Runs:
    """Measured calls: start and end of each, and the marks inside of those with marks."""

    def __init__(self, probe: Probe) -> None:
        self.device = _device_of(probe.inputs)
        self.times: dict[str, list[tuple[int, int]]] = {row: [] for row in ROWS}
        self.marks: list[list[int]] = []
        self._probe, self._stamps = probe, list[int]()
        self._wait = wait = torch.cuda.synchronize if self.device == "cuda" else _nothing
        note, clock = self._stamps.append, time.perf_counter_ns

        def mark(index: int) -> None:
            wait()
            note(clock())

        self._ways = [
            (_EAGER, probe.eager),
            (_COMPILED, probe.replay),
            (_MARKED, probe.marked(mark)),
        ]

    def round(self) -> None:
        """Make one call of each kind, and begin with another one the next time."""
        for row, call in self._ways:
            self._measure(row, call)
        self._ways.append(self._ways.pop(0))
        self.marks.append(list(self._stamps))
        self._stamps.clear()

    def drop_first_round(self) -> None:
        """Forget the round that warmed up."""
        for times in self.times.values():
            del times[0]
        del self.marks[0]

    def _measure(self, row: str, call: Callable[[], Any]) -> None:
        with self._probe.unchanged():
            self._wait()
            start = time.perf_counter_ns()
            call()
            self._wait()
            self.times[row].append((start, time.perf_counter_ns()))


def _summary(probe: Probe, cut: Sequence[Section], runs: _Runs) -> Profile:
    nodes = _nodes(cut, runs, probe.subjects, probe.lowered)
    whole = [end - start for start, end in runs.times[_MARKED]]
    inside = [stamps[-1] - stamps[0] for stamps in runs.marks]
    highest = peak(probe.flat.graph)
    return Profile(
        name=probe.name,
        device=runs.device,
        threads=torch.get_num_threads(),
        eager=_timing(runs.times[_EAGER]),
        compiled=_timing(runs.times[_COMPILED]),
        host=Timing.of([a - b for a, b in zip(whole, inside, strict=True)]),
        nodes=nodes,
        flops=sum(node.flops for node in nodes),
        peak_bytes=highest.bytes if highest else 0,
        peak_at=_name_of(highest.node) if highest else None,
        place=probe.place,
        warm_up_calls=probe.warm_up_calls,
        spans=tuple(_spans(probe.name, cut, runs)),
    )


def _nodes(
    cut: Sequence[Section], runs: _Runs, subjects: Mapping[int, Subject], flat: Any
) -> tuple[NodeProfile, ...]:
    moved = bytes_moved(flat.graph, subjects)
    times = [[b - a for a, b in pairwise(stamps)] for stamps in runs.marks]
    return tuple(
        NodeProfile(
            name=section.name,
            kind=section.kind.value if section.kind else "compiled",
            label=section.label,
            at=section.at,
            time=Timing.of([call[i] for call in times]),
            operators=len(_operators(section)),
            flops=sum(map(flops_of, _operators(section))),
            bytes_moved=_sum(moved[node] for node in section.nodes),
        )
        for i, section in enumerate(cut)
    )


def _spans(name: str, cut: Sequence[Section], runs: _Runs) -> Iterator[Span]:
    for row, calls in runs.times.items():
        for start, end in calls:
            yield Span(row, name, "call", start, end)
    for stamps in runs.marks:
        for section, (start, end) in zip(cut, pairwise(stamps), strict=True):
            kind = section.kind.value if section.kind else "compiled"
            label = f"{section.name} {section.label}".rstrip()
            yield Span(_MARKED, label, kind, start, end, section.at)


def _name_of(node: Node) -> str:
    return str(node.meta.get("stepgraph.node", node.name))


def _operators(section: Section) -> list[Node]:
    """Return the nodes of a section, those inside of a compiled region in its place."""
    found: list[Node] = []
    for node in section.nodes:
        target = node.target
        found += target.graph_module.graph.nodes if isinstance(target, Region) else [node]
    return [node for node in found if node.op == "call_function"]


def _sum(values: Iterator[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _timing(calls: Sequence[tuple[int, int]]) -> Timing:
    return Timing.of([end - start for start, end in calls])


def _device_of(inputs: Sequence[Any]) -> str:
    """Return the type of the device of the inputs that is not the CPU, if there is one."""
    types = [value.device.type for value in inputs if isinstance(value, Tensor)]
    return next((kind for kind in types if kind != "cpu"), "cpu")


def _nothing() -> None:
    """Wait for nothing: a CPU is done when a call returns."""


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

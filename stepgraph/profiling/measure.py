"""Measure a step: eagerly, compiled, compiled node by node and operator by operator, in turns."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.analysis import flops_of, peak
from stepgraph.compiler.probe import Probe
from stepgraph.errors import ConfigurationError
from stepgraph.ir.memory_access import is_glue
from stepgraph.lowering import Region, Section, operator_sections, sections
from stepgraph.profiling.bandwidth import copy_gbps
from stepgraph.profiling.calls import CallsBetweenMarks, operator_calls
from stepgraph.profiling.clock import CudaClock, HostClock, clock_for
from stepgraph.profiling.result import NodeProfile, OperatorProfile, Profile, Timing
from stepgraph.profiling.trace import ROWS, Span
from stepgraph.profiling.traffic import bytes_moved

_EAGER, _COMPILED, _BY_NODE, _BY_OPERATOR = ROWS


def profile(probe: Probe, steps: int) -> Profile:
    """Measure a call of a step `steps` times in each way; see `CompiledStep.profile`.

    The ways take turns, so that a machine that is busy for a while slows all of them. Every call
    starts from the same state, and one round ahead of the measured ones warms caches up. No
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
    runs = _Runs(probe)
    with without_collections():
        for _ in range(steps + 1):
            runs.round()
        runs.drop_first_round()
        return _summary(probe, runs)


@dataclass(frozen=True)
class _Way:
    """A way to make the call, and the clock for what is inside of it, if something is."""

    row: str
    call: Callable[[], Any]
    clock: HostClock | CudaClock | None = None


class _Runs:
    """Measured calls: start and end of each, and the marks inside of those with marks."""

    def __init__(self, probe: Probe) -> None:
        self.device = device_of(probe.inputs)
        self.by_node, self.by_operator = sections(probe.lowered), operator_sections(probe.lowered)
        self.times: dict[str, list[tuple[int, int]]] = {row: [] for row in ROWS}
        self.marks: dict[str, list[list[int]]] = {_BY_NODE: [], _BY_OPERATOR: []}
        self._probe = probe
        self._wait = waiting_for(self.device)
        self._ways = [
            _Way(_EAGER, probe.eager),
            _Way(_COMPILED, probe.replay),
            self._marked(_BY_NODE, self.by_node),
            self._marked(_BY_OPERATOR, self.by_operator),
        ]

    def round(self) -> None:
        """Make one call of each kind, and begin with another one the next time."""
        for way in self._ways:
            self._measure(way)
            if way.clock is not None:
                self.marks[way.row].append(way.clock.take())
        self._ways.append(self._ways.pop(0))

    def drop_first_round(self) -> None:
        """Forget the round that warmed up."""
        for times in self.times.values():
            del times[0]
        for marks in self.marks.values():
            del marks[0]

    def _marked(self, row: str, cut: Sequence[Section]) -> _Way:
        clock = clock_for(self.device)
        return _Way(row, self._probe.marked(clock.mark, cut), clock)

    def _measure(self, way: _Way) -> None:
        with self._probe.unchanged():
            self._wait()
            start = time.perf_counter_ns()
            way.call()
            self._wait()
            self.times[way.row].append((start, time.perf_counter_ns()))


def _summary(probe: Probe, runs: _Runs) -> Profile:
    whole = [end - start for start, end in runs.times[_BY_NODE]]
    inside = [stamps[-1] - stamps[0] for stamps in runs.marks[_BY_NODE]]
    moved = bytes_moved(probe.lowered.graph, probe.subjects)
    nodes = _nodes(probe, runs, moved)
    highest, before = peak(probe.flat.graph), peak(probe.flat_as_captured.graph)
    return Profile(
        name=probe.name,
        device=runs.device,
        threads=torch.get_num_threads(),
        eager=_timing(runs.times[_EAGER]),
        compiled=_timing(runs.times[_COMPILED]),
        host=Timing.of([max(a - b, 0) for a, b in zip(whole, inside, strict=True)]),
        nodes=nodes,
        flops=sum(node.flops for node in nodes),
        peak_bytes=highest.bytes if highest else 0,
        peak_at=_node_name(highest.node) if highest else None,
        place=probe.place,
        warm_up_calls=probe.warm_up_calls,
        spans=tuple(_spans(probe.name, runs)),
        operators=_operators(runs, moved),
        copy_gbps=copy_gbps(runs.device),
        eager_launches=_eager_launches(probe),
        captured_peak_bytes=before.bytes if before else 0,
        variant=probe.variant,
        allocated_bytes=_allocated(probe) if runs.device == "cuda" else None,
    )


def _nodes(probe: Probe, runs: _Runs, moved: Mapping[Node, int | None]) -> tuple[NodeProfile, ...]:
    launches = _launches(probe, runs.by_node)
    return tuple(
        NodeProfile(
            name=section.name,
            kind=_kind(section),
            label=section.label,
            at=section.at,
            time=Timing.of([_length(stamps, i) for stamps in runs.marks[_BY_NODE]]),
            operators=len(_inside(section)),
            flops=sum(map(flops_of, _inside(section))),
            bytes_moved=_sum(moved[node] for node in section.nodes),
            launches=launches[i],
            covers=_covered(section),
        )
        for i, section in enumerate(runs.by_node)
    )


def _operators(runs: _Runs, moved: Mapping[Node, int | None]) -> tuple[OperatorProfile, ...]:
    """Return what all calls of each operator take together, the longest first."""
    known: dict[str, list[int]] = {}
    for i, section in enumerate(runs.by_operator):
        known.setdefault(section.title, []).append(i)
    found = []
    for name, places in known.items():
        own = [runs.by_operator[i] for i in places]
        calls = [sum(_length(stamps, i) for i in places) for stamps in runs.marks[_BY_OPERATOR]]
        nodes = (_node_name(section.nodes[0]) for section in own)
        found.append(
            OperatorProfile(
                name=name,
                launches=len(own),
                time=Timing.of(calls),
                flops=sum(flops_of(node) for section in own for node in _inside(section)),
                bytes_moved=_sum(moved[node] for section in own for node in section.nodes),
                nodes=tuple(dict.fromkeys(nodes)),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.time.median_ms))


def _launches(probe: Probe, cut: Sequence[Section]) -> list[int]:
    """Return how many operators each section calls; a region that was compiled is one more."""
    counter = CallsBetweenMarks(len(cut))
    with probe.unchanged():
        counts = counter.count(probe.marked(counter.mark, cut))
    compiled = (sum(isinstance(node.target, Region) for node in own.nodes) for own in cut)
    return [count + regions for count, regions in zip(counts, compiled, strict=True)]


def _eager_launches(probe: Probe) -> int | None:
    with probe.unchanged():
        return operator_calls(probe.eager)


def _allocated(probe: Probe) -> tuple[int, int]:
    """Return the most bytes allocated on the device in an eager call, and in a replay."""
    found = []
    for call in (probe.eager, probe.replay):
        with probe.unchanged():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            found.append(torch.cuda.max_memory_allocated())
    return found[0], found[1]


def _spans(name: str, runs: _Runs) -> Iterator[Span]:
    for row, calls in runs.times.items():
        for start, end in calls:
            yield Span(row, name, "call", start, end)
    for row, cut in ((_BY_NODE, runs.by_node), (_BY_OPERATOR, runs.by_operator)):
        for stamps in runs.marks[row]:
            for section, (start, end) in zip(cut, pairwise(stamps), strict=True):
                yield Span(row, section.title, _kind(section), start, end, section.at)


def _kind(section: Section) -> str:
    return "compiled" if section.kind is None else section.kind.value


def _length(stamps: Sequence[int], index: int) -> int:
    return stamps[index + 1] - stamps[index]


def _node_name(node: Node) -> str:
    return str(node.meta.get("stepgraph.node", node.name))


def _covered(section: Section) -> tuple[str, ...]:
    """Return the names of the typed nodes of a section; views in it may belong to others."""
    own = (node for node in _inside(section) if not is_glue(node))
    return tuple(dict.fromkeys(map(_node_name, own)))


def _inside(section: Section) -> list[Node]:
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


def device_of(inputs: Sequence[Any]) -> str:
    """Return the type of the device of the inputs that is not the CPU, if there is one."""
    types = [value.device.type for value in inputs if isinstance(value, Tensor)]
    return next((kind for kind in types if kind != "cpu"), "cpu")


def waiting_for(device: str) -> Callable[[], None]:
    """Return what waits until a type of device has done all that it was sent."""
    return torch.cuda.synchronize if device == "cuda" else _nothing


def _nothing() -> None:
    """Wait for nothing: a CPU is done when a call returns."""


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Scope in which no garbage is collected."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

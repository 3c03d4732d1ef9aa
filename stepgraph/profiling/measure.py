"""Measure a step: eagerly, compiled, with a clock between nodes, and between operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Node

from stepgraph.analysis import flops_of, peak
from stepgraph.compiler.probe import Probe
from stepgraph.errors import ConfigurationError
from stepgraph.ir.memory_access import is_glue
from stepgraph.lowering import CompiledRun, Section, operator_sections, sections
from stepgraph.profiling.bandwidth import copy_gbps
from stepgraph.profiling.calls import CallsBetweenMarks, operator_calls
from stepgraph.profiling.clock import (
    CudaClock,
    HostClock,
    clock_for,
    device_of,
    timed,
    without_garbage_collection,
)
from stepgraph.profiling.measurements import NodeProfile, OperatorProfile, Timing
from stepgraph.profiling.result import Profile
from stepgraph.profiling.trace import ROWS, Span
from stepgraph.profiling.traffic import bytes_moved

_EAGER, _COMPILED, _BY_NODE, _BY_OPERATOR = ROWS


def profile(probe: Probe, steps: int) -> Profile:
    """Measure a call of a step `steps` times in each way; see `CompiledStep.profile`.

    The ways take turns, so that a temporary load on the machine slows all of them alike. Every
    call starts from the same state. One unmeasured round warms caches up. The garbage collector
    is off.

    Raises:
        ConfigurationError: `steps` is not a whole number of at least 1, or a call did not replay.
    """
    if type(steps) is not int or steps < 1:
        raise ConfigurationError(
            "a profile needs calls to measure",
            found=f"steps={steps!r}",
            hint="a whole number of at least 1",
        )
    runs = _Runs(probe)
    with without_garbage_collection():
        for _ in range(steps + 1):
            runs.round()
        runs.drop_first_round()
        return _summary(probe, runs)


@dataclass(frozen=True)
class _Way:
    """A way to run the call, with the clock of its marks if it has marks."""

    row: str
    call: Callable[[], Any]
    clock: HostClock | CudaClock | None = None


class _Runs:
    """Start and end of every measured call, and the times of the marks inside of it."""

    def __init__(self, probe: Probe) -> None:
        self.device = device_of(probe.inputs)
        self.by_node, self.by_operator = sections(probe.lowered), operator_sections(probe.lowered)
        self.times: dict[str, list[tuple[int, int]]] = {row: [] for row in ROWS}
        self.marks: dict[str, list[list[int]]] = {_BY_NODE: [], _BY_OPERATOR: []}
        self._probe = probe
        self._ways = [
            _Way(_EAGER, probe.eager),
            _Way(_COMPILED, probe.replay),
            self._marked(_BY_NODE, self.by_node),
            self._marked(_BY_OPERATOR, self.by_operator),
        ]

    def round(self) -> None:
        """Run one call in each way; the next round starts with the next way."""
        for way in self._ways:
            self._measure(way)
            if way.clock is not None:
                self.marks[way.row].append(way.clock.take())
        self._ways.append(self._ways.pop(0))

    def drop_first_round(self) -> None:
        """Forget the warm-up round."""
        for times in self.times.values():
            del times[0]
        for marks in self.marks.values():
            del marks[0]

    def _marked(self, row: str, cut: Sequence[Section]) -> _Way:
        clock = clock_for(self.device)
        return _Way(row, self._probe.marked(clock.mark, cut), clock)

    def _measure(self, way: _Way) -> None:
        with self._probe.unchanged():
            self.times[way.row].append(timed(way.call, self.device))


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
    """Return the measurements of all operators, longest first."""
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
    """Return the launches of each section; a compiled region counts as one."""
    counter = CallsBetweenMarks(len(cut))
    with probe.unchanged():
        counts = counter.count(probe.marked(counter.mark, cut))
    compiled = (sum(isinstance(node.target, CompiledRun) for node in own.nodes) for own in cut)
    return [count + regions for count, regions in zip(counts, compiled, strict=True)]


def _eager_launches(probe: Probe) -> int | None:
    with probe.unchanged():
        return operator_calls(probe.eager)


def _allocated(probe: Probe) -> tuple[int, int]:
    """Return the peak of allocated bytes on the device in an eager call, and in a replay."""
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
    """Return the names of the typed nodes of a section; views may belong to other nodes."""
    own = (node for node in _inside(section) if not is_glue(node))
    return tuple(dict.fromkeys(map(_node_name, own)))


def _inside(section: Section) -> list[Node]:
    """Return the calls of a section; a compiled region is replaced by the nodes inside of it."""
    found: list[Node] = []
    for node in section.nodes:
        target = node.target
        found += target.graph_module.graph.nodes if isinstance(target, CompiledRun) else [node]
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

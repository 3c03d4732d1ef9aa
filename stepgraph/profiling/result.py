"""`Profile`: the result of `CompiledStep.profile`, with its text, JSON and trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepgraph.compiler import extensions
from stepgraph.ir import readable
from stepgraph.profiling.measurements import NodeProfile, OperatorProfile, Timing, plain
from stepgraph.profiling.text import (
    MOST_OPERATORS,
    NODE_HEAD,
    OPERATOR_HEAD,
    columns,
    device_text,
    node_row,
    operator_row,
)
from stepgraph.profiling.trace import Span, write_chrome_trace

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Profile:
    """Measurements of a compiled step beside the same step in eager mode; prints itself.

    Attributes:
        name: The step's name.
        device: Type of device it ran on.
        threads: Number of torch's CPU threads.
        eager: Calls of the user's Python.
        compiled: Replays, timed from outside, without a clock between nodes.
        host: Part of a replay outside of its nodes: guards, inputs, results.
        nodes: The typed nodes, in program order. Their times come from separate replays in which
            a clock is read between nodes.
        flops: Floating-point operations of all matrix products, convolutions and attention.
        peak_bytes: Largest number of bytes alive at once among the tensors that the step
            allocates, if its operators run one by one.
        peak_at: Node of the step graph in which `peak_bytes` is reached.
        place: Which call of a window was measured; None if there is no window.
        warm_up_calls: Calls before the step was captured. They train.
        spans: Start and end of every measured call, node and operator, for a trace.
        operators: All operators, longest first. Their times come from separate replays in which
            a clock is read between operators.
        copy_gbps: Bandwidth of a large copy on this machine: billions of bytes read and written
            per second.
        eager_launches: Number of operator calls in an eager call; None if they were not counted.
        captured_peak_bytes: `peak_bytes` of the step before the passes.
        variant: Index of the step's variant that was measured.
        allocated_bytes: On a GPU: largest number of bytes allocated during an eager call, and
            during a replay.
    """

    name: str
    device: str
    threads: int
    eager: Timing
    compiled: Timing
    host: Timing
    nodes: tuple[NodeProfile, ...]
    flops: int
    peak_bytes: int
    peak_at: str | None
    place: str | None = None
    warm_up_calls: int = 0
    spans: tuple[Span, ...] = field(default=(), repr=False, compare=False)
    operators: tuple[OperatorProfile, ...] = ()
    copy_gbps: float | None = None
    eager_launches: int | None = None
    captured_peak_bytes: int | None = None
    variant: int = 0
    allocated_bytes: tuple[int, int] | None = None

    @property
    def launches(self) -> int:
        """Number of operator calls in a replay that compute something."""
        return sum(node.launches for node in self.nodes)

    @property
    def speedup(self) -> float:
        """Median duration of an eager call divided by that of a replay."""
        return self.eager.median_ms / self.compiled.median_ms

    @property
    def total_ms(self) -> float:
        """Sum of the median times of the nodes and of the host, the base of each node's share."""
        return sum(node.time.median_ms for node in self.nodes) + self.host.median_ms

    @property
    def operators_ms(self) -> float:
        """Sum of the median times of the operators, the base of each operator's share."""
        return sum(one.time.median_ms for one in self.operators)

    @property
    def headline(self) -> str:
        """The speed of the step relative to eager, and how it was measured, in one sentence."""
        calls = f"medians of {self.compiled.calls} calls each, in turns"
        return (
            f"{self.name}: compiled runs at {self.speedup:.2f} times the speed of eager "
            f"({calls}; {device_text(self.device, self.threads)})"
        )

    def summary(self) -> Iterator[tuple[str, str]]:
        """Yield the measurements of a whole call, as pairs of a name and a text."""
        yield "eager", str(self.eager)
        yield "compiled", str(self.compiled)
        yield "host", f"{self.host}: part of compiled: guards, inputs, results"
        eager = "" if self.eager_launches is None else f", eagerly {self.eager_launches}"
        yield "launches", f"{self.launches}{eager}: calls of operators that compute something"
        yield "products", f"{self.flops:,} floating-point operations"
        if self.copy_gbps is not None:
            yield "copy", f"{self.copy_gbps:.1f} GB/s, measured: the reference for a node's GB/s"
        yield "memory", self._memory()
        if self.allocated_bytes is not None:
            eagerly, compiled = map(readable, self.allocated_bytes)
            yield "allocated", f"{compiled} at most on the device, eagerly {eagerly}"
        if self.place:
            yield "window", f"call {self.place}"
        if self.warm_up_calls:
            yield "warm-up", f"{self.warm_up_calls} calls, which trained"

    def to_dict(self) -> dict[str, Any]:
        """Return the profile without its spans as plain dicts, lists, strings and numbers."""
        found: dict[str, Any] = plain(dataclasses.asdict(dataclasses.replace(self, spans=())))
        del found["spans"]
        return found | {"launches": self.launches}

    def to_chrome_trace(self, path: str | Path) -> None:
        """Write every measured call as a trace for chrome://tracing or Perfetto.

        The trace has four rows: eager calls, replays, replays with a clock between nodes, and
        replays with a clock between operators. Spans carry the names of nodes and operators.

        Raises:
            OSError: The file cannot be written.
        """
        write_chrome_trace(Path(path), self.name, self.spans)

    def __str__(self) -> str:
        facts = [f"  {name:<12} {text}" for name, text in self.summary()]
        total, copy = self.total_ms, self.copy_gbps
        rows = [node_row(node, total_ms=total, copy_gbps=copy) for node in self.nodes]
        lines = [self.headline, *facts, *columns([NODE_HEAD, *rows], left=(0, 1, 9))]
        if self.operators:
            total, shown = self.operators_ms, self.operators[:MOST_OPERATORS]
            rows = [operator_row(one, total_ms=total, copy_gbps=copy) for one in shown]
            lines += columns([OPERATOR_HEAD, *rows], left=(0,))
            more = len(self.operators) - len(shown)
            lines += [f"  and {more} more"] if more > 0 else []
        return "\n".join(lines)

    def __rich__(self) -> RenderableType:
        shown: RenderableType = extensions.to_rich(self)
        return shown

    def _memory(self) -> str:
        text = f"{readable(self.peak_bytes)} at most, in {self.peak_at}"
        before = self.captured_peak_bytes
        if before is not None and before != self.peak_bytes:
            text += f"; before the passes {readable(before)}"
        return text

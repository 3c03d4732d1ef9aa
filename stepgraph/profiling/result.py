"""`Profile`: what `CompiledStep.profile` returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepgraph.compiler import extensions
from stepgraph.profiling.text import describe
from stepgraph.profiling.trace import Span, write_chrome_trace

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Timing:
    """Times of several calls, in milliseconds.

    Attributes:
        median_ms: The middle one.
        low_ms: A fifth of the calls took less.
        high_ms: A fifth of the calls took more.
        calls: How many there were.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    calls: int

    @classmethod
    def of(cls, times_ns: list[int]) -> Timing:
        """Return the timing of calls that took so many nanoseconds; at least one."""
        ordered = sorted(times_ns)
        last = len(ordered) - 1
        low, middle, high = (ordered[round(last * part)] for part in (0.2, 0.5, 0.8))
        return cls(middle / 1e6, low / 1e6, high / 1e6, len(ordered))

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms ({self.low_ms:.3f} to {self.high_ms:.3f})"


@dataclass(frozen=True)
class NodeProfile:
    """A typed node of a step, or a run of small ones.

    Attributes:
        name: Its name in the step graph; of a run, that of the first.
        kind: What it is for: `forward`, `backward`, `step` and so on; `compiled` for code that
            was compiled across typed nodes.
        label: The object it acts on, or how many nodes the run has.
        at: The user's file and line, or None.
        time: How long it took.
        operators: ATen operators and effects in it.
        flops: Floating-point operations of its products.
        bytes_moved: Bytes that its operators read and write, one by one; of a compiled node what
            goes in and comes out. None if not known.
        launches: Calls of operators that compute something, those inside of an optimizer's own step
            too: what a host has to launch. Code that was compiled counts for itself, once.
        covers: The names of the typed nodes that it runs.
    """

    name: str
    kind: str
    label: str
    at: str | None
    time: Timing
    operators: int
    flops: int
    bytes_moved: int | None
    launches: int = 0
    covers: tuple[str, ...] = ()

    @property
    def gflops_per_s(self) -> float:
        """Billions of floating-point operations in a second."""
        return self.flops / max(self.time.median_ms, 1e-9) / 1e6

    @property
    def gbps(self) -> float | None:
        """Billions of bytes moved in a second, or None if not known."""
        return _gbps(self.bytes_moved, self.time)


@dataclass(frozen=True)
class OperatorProfile:
    """All calls of one operator, or of one effect, in a call of the step.

    Attributes:
        name: The operator, for example `aten.addmm`; of an effect what it is and what it acts on.
        launches: How often the step calls it.
        time: How long all its calls in a step took, the reading of a clock at each included.
        flops: Floating-point operations of all calls.
        bytes_moved: Bytes that all calls read and write. None if not known.
        nodes: The typed nodes that call it.
    """

    name: str
    launches: int
    time: Timing
    flops: int
    bytes_moved: int | None
    nodes: tuple[str, ...]

    @property
    def gbps(self) -> float | None:
        """Billions of bytes moved in a second, or None if not known."""
        return _gbps(self.bytes_moved, self.time)


def _gbps(bytes_moved: int | None, time: Timing) -> float | None:
    return None if bytes_moved is None else bytes_moved / max(time.median_ms, 1e-9) / 1e6


@dataclass(frozen=True)
class Profile:
    """What a compiled step costs, next to its eager self.

    Attributes:
        name: The step's name.
        device: Where it ran.
        threads: Threads of torch on the CPU.
        eager: Calls of the user's Python.
        compiled: Replays, measured from outside, nothing added.
        host: What a replay takes besides its nodes: guards, inputs, results.
        nodes: The typed nodes, in program order. Their times come from replays of their own, in
            which a clock is read between nodes.
        flops: Floating-point operations of all products.
        peak_bytes: Most bytes alive at once of what the step allocates, operators run one by one.
        peak_at: The node of the step graph in which that is.
        place: Which call of a window was measured; None where every call is alike.
        warm_up_calls: Calls, which trained, until the step was captured.
        spans: Start and end of every measured call and node, for a trace.
        operators: Every operator, those that take longest first. Their times come from replays of
            their own, in which a clock is read between operators.
        copy_gbps: Billions of bytes in a second that a large copy reads and writes here.
        eager_launches: Operators that an eager call calls; None if they could not be counted.
        captured_peak_bytes: `peak_bytes` of the step before the passes.
        variant: Which of the step's variants was measured.
        allocated_bytes: On a GPU: most bytes that were allocated in an eager call and in a replay.
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
        """Operators that a replay calls: what a host has to launch."""
        return sum(node.launches for node in self.nodes)

    @property
    def speedup(self) -> float:
        """How many times as fast as eagerly a replay is, by the medians."""
        return self.eager.median_ms / self.compiled.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Return the profile, but for its spans, as plain dicts, lists, strings and numbers."""
        found: dict[str, Any] = plain(dataclasses.asdict(dataclasses.replace(self, spans=())))
        del found["spans"]
        return found | {"launches": self.launches}

    def to_chrome_trace(self, path: str | Path) -> None:
        """Write every measured call as a trace for chrome://tracing or Perfetto.

        Four rows: eager calls, replays, and replays with a clock between nodes and between
        operators, whose spans carry the names of those.

        Raises:
            OSError: The file cannot be written.
        """
        write_chrome_trace(Path(path), self.name, self.spans)

    def __str__(self) -> str:
        return describe(self)

    def __rich__(self) -> RenderableType:
        shown: RenderableType = extensions.to_rich(self)
        return shown


def plain(value: Any) -> Any:
    """Return `value` with lists in the place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value

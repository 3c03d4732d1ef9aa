"""`Profile`: what `CompiledStep.profile` returns; prints itself."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepgraph.profiling.trace import Span, write_chrome_trace


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
    """

    name: str
    kind: str
    label: str
    at: str | None
    time: Timing
    operators: int
    flops: int
    bytes_moved: int | None

    @property
    def gflops_per_s(self) -> float:
        """Billions of floating-point operations in a second."""
        return self.flops / max(self.time.median_ms, 1e-9) / 1e6

    @property
    def gbps(self) -> float | None:
        """Billions of bytes moved in a second, or None if not known."""
        if self.bytes_moved is None:
            return None
        return self.bytes_moved / max(self.time.median_ms, 1e-9) / 1e6


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

    @property
    def speedup(self) -> float:
        """How many times as fast as eagerly a replay is, by the medians."""
        return self.eager.median_ms / self.compiled.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Return the profile, but for its spans, as plain dicts, lists, strings and numbers."""
        plain = dataclasses.asdict(dataclasses.replace(self, spans=()))
        del plain["spans"]
        plain["nodes"] = list(plain["nodes"])
        return plain

    def to_chrome_trace(self, path: str | Path) -> None:
        """Write every measured call as a trace for chrome://tracing or Perfetto.

        Three rows: eager calls, replays, and replays with a clock between nodes, whose spans
        carry the names of the nodes.

        Raises:
            OSError: The file cannot be written.
        """
        write_chrome_trace(Path(path), self.name, self.spans)

    def __str__(self) -> str:
        calls = f"medians of {self.compiled.calls} calls each, in turns"
        plural = "" if self.threads == 1 else "s"
        where = self.device if self.device != "cpu" else f"cpu, {self.threads} thread{plural}"
        lines = [
            f"{self.name}: compiled runs at {self.speedup:.2f} times the speed of eager "
            f"({calls}; {where})",
            f"  eager        {self.eager}",
            f"  compiled     {self.compiled}",
            f"  of it host   {self.host}: guards, inputs, results",
            f"  products     {self.flops:,} floating-point operations",
            f"  memory       {readable(self.peak_bytes)} at most, in {self.peak_at}",
        ]
        if self.place:
            lines.append(f"  window       call {self.place}")
        if self.warm_up_calls:
            lines.append(f"  warm-up      {self.warm_up_calls} calls, which trained")
        return "\n".join([*lines, *_table(self)])


def readable(n_bytes: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def _table(profile: Profile) -> list[str]:
    total = sum(node.time.median_ms for node in profile.nodes) + profile.host.median_ms
    head = ("node", "", "ms", "share", "GFLOP/s", "moved", "GB/s", "")
    rows = [head, *(_row(node, total) for node in profile.nodes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    left = (0, 1, 7)
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def _row(node: NodeProfile, total_ms: float) -> tuple[str, ...]:
    moved, gbps = node.bytes_moved, node.gbps
    return (
        node.name,
        node.label,
        f"{node.time.median_ms:.3f}",
        f"{node.time.median_ms / total_ms:.0%}",
        f"{node.gflops_per_s:.1f}" if node.flops else "",
        "?" if moved is None else readable(moved) if moved else "",
        f"{gbps:.1f}" if gbps else "",
        os.path.basename(node.at or ""),
    )

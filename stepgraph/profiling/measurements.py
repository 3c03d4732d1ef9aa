"""The data of a profile: times, and the measurements of one node and of one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Durations of repeated calls, in milliseconds.

    Attributes:
        median_ms: Median.
        low_ms: 20th percentile.
        high_ms: 80th percentile.
        calls: Number of calls.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    calls: int

    @classmethod
    def of(cls, times_ns: list[int]) -> Timing:
        """Return the timing of calls with these durations in nanoseconds; at least one."""
        ordered = sorted(times_ns)
        last = len(ordered) - 1
        low, middle, high = (ordered[round(last * part)] for part in (0.2, 0.5, 0.8))
        return cls(middle / 1e6, low / 1e6, high / 1e6, len(ordered))

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms ({self.low_ms:.3f} to {self.high_ms:.3f})"


@dataclass(frozen=True)
class NodeProfile:
    """Measurements of one typed node of a step, or of one run of small nodes.

    Attributes:
        name: Name of the node in the step graph; of a run, the name of its first node.
        kind: `forward`, `backward`, `step` and so on; `compiled` for a region that was compiled
            across typed nodes.
        label: The object the node acts on, or the number of nodes of a run.
        at: The user's file and line, or None.
        time: Duration.
        operators: Number of ATen operators and effects in it.
        flops: Floating-point operations of its matrix products, convolutions and attention.
        bytes_moved: Bytes that its operators read and write, operator by operator; of a compiled
            region, the bytes of its inputs and outputs. None if not known.
        launches: Number of operator calls that compute something, including those inside of an
            optimizer's own step. A compiled region counts as one.
        covers: Names of the typed nodes it contains.
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
        """Billions of floating-point operations per second."""
        return self.flops / max(self.time.median_ms, 1e-9) / 1e6

    @property
    def gbps(self) -> float | None:
        """Billions of bytes moved per second, or None if not known."""
        return _gbps(self.bytes_moved, self.time)


@dataclass(frozen=True)
class OperatorProfile:
    """Measurements of all calls of one operator, or of one effect, in one call of the step.

    Attributes:
        name: The operator, for example `aten.addmm`; of an effect, its name and its object.
        launches: Number of calls in one call of the step.
        time: Total duration of these calls, including one reading of a clock for each.
        flops: Floating-point operations of all calls.
        bytes_moved: Bytes that all calls read and write. None if not known.
        nodes: Names of the typed nodes that call it.
    """

    name: str
    launches: int
    time: Timing
    flops: int
    bytes_moved: int | None
    nodes: tuple[str, ...]

    @property
    def gbps(self) -> float | None:
        """Billions of bytes moved per second, or None if not known."""
        return _gbps(self.bytes_moved, self.time)


def plain(value: Any) -> Any:
    """Return `value` with each tuple replaced by a list, as JSON requires."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _gbps(bytes_moved: int | None, time: Timing) -> float | None:
    return None if bytes_moved is None else bytes_moved / max(time.median_ms, 1e-9) / 1e6

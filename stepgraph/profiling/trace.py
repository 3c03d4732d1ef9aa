"""Measured spans, and the Trace Event Format that Perfetto and chrome://tracing read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = ("eager", "compiled", "compiled, node by node", "compiled, operator by operator")
"""The rows of a trace, one for each kind of measured call."""


@dataclass(frozen=True)
class Span:
    """Start and end of a call, of a node or of an operator.

    Attributes:
        row: One of `ROWS`.
        name: Name of the step, the node or the operator.
        kind: `call`, or the kind of the node.
        start_ns: Start, by the clock of the process.
        end_ns: End, by the same clock.
        at: The user's file and line, or None.
    """

    row: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    at: str | None = None


def write_chrome_trace(path: Path, name: str, spans: Sequence[Span]) -> None:
    """Write spans in the Trace Event Format: complete events, times in microseconds."""
    first_ns = min((span.start_ns for span in spans), default=0)
    names = [_metadata("process_name", 0, f"stepgraph: {name}")]
    names += [_metadata("thread_name", row, title) for row, title in enumerate(ROWS)]
    events = [*names, *(_event(span, first_ns) for span in spans)]
    trace = {"traceEvents": events, "displayTimeUnit": "ms"}
    path.write_text(json.dumps(trace), encoding="utf-8")


def _metadata(what: str, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": 0, "tid": row, "args": {"name": name}}


def _event(span: Span, first_ns: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.kind,
        "pid": 0,
        "tid": ROWS.index(span.row),
        "ts": (span.start_ns - first_ns) / 1e3,
        "dur": (span.end_ns - span.start_ns) / 1e3,
        "args": {"at": span.at} if span.at else {},
    }

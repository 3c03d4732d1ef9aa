"""Measured spans of time, and the file format that trace viewers read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = ("eager", "compiled", "compiled, node by node", "compiled, operator by operator")
"""What a trace has a row for."""


@dataclass(frozen=True)
class Span:
    """Something that was measured.

    Attributes:
        row: One of `ROWS`.
        name: The step's name, or that of a node.
        kind: `call`, or the kind of the node.
        start_ns: When it began, by the clock of the process.
        end_ns: When it ended.
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

"""Tables as plain text: the rows of nodes and of operators, and their columns."""

from __future__ import annotations

import os
from collections.abc import Sequence

from stepgraph.ir import readable
from stepgraph.profiling.measurements import NodeProfile, OperatorProfile

MOST_OPERATORS = 12
"""Number of operators that a terminal shows."""

NODE_HEAD = ("node", "", "ms", "share", "launches", "GFLOP/s", "moved", "GB/s", "of copy", "")
OPERATOR_HEAD = ("operator", "launches", "ms", "share", "moved", "GB/s", "of copy")


def device_text(device: str, threads: int) -> str:
    """Return the device; for a CPU, with the number of threads."""
    plural = "" if threads == 1 else "s"
    return f"cpu, {threads} thread{plural}" if device == "cpu" else device


def node_row(node: NodeProfile, *, total_ms: float, copy_gbps: float | None) -> tuple[str, ...]:
    """Return the cells of a node, in the order of `NODE_HEAD`.

    Args:
        node: The node.
        total_ms: Duration of the call, for the node's share of it.
        copy_gbps: Measured copy bandwidth, or None.
    """
    return (
        node.name,
        node.label,
        f"{node.time.median_ms:.3f}",
        f"{node.time.median_ms / max(total_ms, 1e-9):.0%}",
        str(node.launches) if node.launches else "",
        f"{node.gflops_per_s:.1f}" if node.flops else "",
        *_traffic(node.bytes_moved, node.gbps, copy_gbps),
        os.path.basename(node.at or ""),
    )


def operator_row(
    one: OperatorProfile, *, total_ms: float, copy_gbps: float | None
) -> tuple[str, ...]:
    """Return the cells of an operator, in the order of `OPERATOR_HEAD`.

    Args:
        one: The operator.
        total_ms: Duration of all operators, for the operator's share of it.
        copy_gbps: Measured copy bandwidth, or None.
    """
    return (
        one.name,
        str(one.launches),
        f"{one.time.median_ms:.3f}",
        f"{one.time.median_ms / max(total_ms, 1e-9):.0%}",
        *_traffic(one.bytes_moved, one.gbps, copy_gbps),
    )


def columns(rows: Sequence[tuple[str, ...]], *, left: tuple[int, ...]) -> list[str]:
    """Return one line for each row with aligned columns; those in `left` are left-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def bytes_text(bytes_moved: int | None) -> str:
    """Return a number of bytes with its unit: `?` if not known, empty for none."""
    if bytes_moved is None:
        return "?"
    return readable(bytes_moved) if bytes_moved else ""


def _traffic(
    bytes_moved: int | None, gbps: float | None, copy_gbps: float | None
) -> tuple[str, str, str]:
    """Return the cells `moved`, `GB/s` and `of copy`."""
    of_copy = f"{gbps / copy_gbps:.0%}" if gbps and copy_gbps else ""
    return bytes_text(bytes_moved), f"{gbps:.1f}" if gbps else "", of_copy

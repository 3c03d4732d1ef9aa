"""A profile in words, and as a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stepgraph.ir import readable

if TYPE_CHECKING:
    from stepgraph.profiling.result import NodeProfile, OperatorProfile, Profile

_MOST_OPERATORS = 12


def describe(profile: Profile) -> str:
    """Return a profile as plain text: what it says in all, its nodes, its operators."""
    facts = [f"  {name:<12} {text}" for name, text in summary(profile)]
    left = (0, 1, 9)
    nodes = [NODE_HEAD, *(node_row(profile, node) for node in profile.nodes)]
    lines = [headline(profile), *facts, *columns(nodes, left=left)]
    if profile.operators:
        shown = [operator_row(profile, one) for one in profile.operators[:_MOST_OPERATORS]]
        lines += columns([OPERATOR_HEAD, *shown], left=(0,))
        more = len(profile.operators) - len(shown)
        lines += [f"  and {more} more"] if more > 0 else []
    return "\n".join(lines)


def headline(profile: Profile) -> str:
    """Return the profile in one sentence."""
    calls = f"medians of {profile.compiled.calls} calls each, in turns"
    plural = "" if profile.threads == 1 else "s"
    where = f"cpu, {profile.threads} thread{plural}" if profile.device == "cpu" else profile.device
    return (
        f"{profile.name}: compiled runs at {profile.speedup:.2f} times the speed of eager "
        f"({calls}; {where})"
    )


def summary(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield what a profile says about a whole call, as names and texts."""
    yield "eager", str(profile.eager)
    yield "compiled", str(profile.compiled)
    yield "of it host", f"{profile.host}: guards, inputs, results"
    eager = "" if profile.eager_launches is None else f", eagerly {profile.eager_launches}"
    yield "launches", f"{profile.launches}{eager}: calls of operators that compute something"
    yield "products", f"{profile.flops:,} floating-point operations"
    if profile.copy_gbps is not None:
        yield "copy", f"{profile.copy_gbps:.1f} GB/s, measured: what GB/s of a node compare with"
    yield "memory", _memory(profile)
    if profile.allocated_bytes is not None:
        eagerly, compiled = map(readable, profile.allocated_bytes)
        yield "allocated", f"{compiled} at most on the device, eagerly {eagerly}"
    if profile.place:
        yield "window", f"call {profile.place}"
    if profile.warm_up_calls:
        yield "warm-up", f"{profile.warm_up_calls} calls, which trained"


def _memory(profile: Profile) -> str:
    text = f"{readable(profile.peak_bytes)} at most, in {profile.peak_at}"
    before = profile.captured_peak_bytes
    if before is not None and before != profile.peak_bytes:
        text += f"; before the passes {readable(before)}"
    return text


NODE_HEAD = ("node", "", "ms", "share", "launches", "GFLOP/s", "moved", "GB/s", "of copy", "")


def node_row(profile: Profile, node: NodeProfile) -> tuple[str, ...]:
    """Return the cells of a node, as in `NODE_HEAD`."""
    moved, gbps = node.bytes_moved, node.gbps
    return (
        node.name,
        node.label,
        f"{node.time.median_ms:.3f}",
        _share(profile, node.time.median_ms),
        str(node.launches) if node.launches else "",
        f"{node.gflops_per_s:.1f}" if node.flops else "",
        "?" if moved is None else readable(moved) if moved else "",
        f"{gbps:.1f}" if gbps else "",
        _of_copy(profile, gbps),
        os.path.basename(node.at or ""),
    )


OPERATOR_HEAD = ("operator", "launches", "ms", "share", "moved", "GB/s", "of copy")


def operator_row(profile: Profile, one: OperatorProfile) -> tuple[str, ...]:
    """Return the cells of an operator, as in `OPERATOR_HEAD`."""
    moved, gbps = one.bytes_moved, one.gbps
    total = sum(other.time.median_ms for other in profile.operators)
    return (
        one.name,
        str(one.launches),
        f"{one.time.median_ms:.3f}",
        f"{one.time.median_ms / max(total, 1e-9):.0%}",
        "?" if moved is None else readable(moved) if moved else "",
        f"{gbps:.1f}" if gbps else "",
        _of_copy(profile, gbps),
    )


def _share(profile: Profile, ms: float) -> str:
    total = sum(node.time.median_ms for node in profile.nodes) + profile.host.median_ms
    return f"{ms / max(total, 1e-9):.0%}"


def _of_copy(profile: Profile, gbps: float | None) -> str:
    return f"{gbps / profile.copy_gbps:.0%}" if gbps and profile.copy_gbps else ""


def columns(rows: Sequence[tuple[str, ...]], *, left: tuple[int, ...]) -> list[str]:
    """Return lines whose cells stand below one another; those in `left` on the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines

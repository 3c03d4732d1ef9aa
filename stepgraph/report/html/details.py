"""The details that a click on a box, a row or a span shows."""

from __future__ import annotations

import linecache
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stepgraph.ir import readable
from stepgraph.profiling import NodeProfile, OperatorProfile, Profile
from stepgraph.report.html.boxes import Box
from stepgraph.report.html.graph_svg import Measured

Details = dict[str, object]


@dataclass
class Embedded:
    """Values that a page embeds for its script.

    Attributes:
        details: Details by key.
        memory: By key of a memory chart: typed node, operator and live bytes of each operator.
        of_nodes: Keys of the boxes after the passes, by the names of their nodes.
    """

    details: dict[str, Details] = field(default_factory=dict)
    memory: dict[str, list[list[str]]] = field(default_factory=dict)
    of_nodes: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the values as JSON for the page."""
        return {"details": self.details, "memory": self.memory}


def profiles_of(drawn: Sequence[Box], profile: Profile | None) -> dict[int, NodeProfile]:
    """Return for each box the profile of the node that covers it, by number of the box."""
    if profile is None:
        return {}
    covering = {name: node for node in profile.nodes for name in node.covers}
    found = ((box.number, next(filter(None, map(covering.get, box.nodes)), None)) for box in drawn)
    return {number: node for number, node in found if node is not None}


def measured(drawn: Sequence[Box], nodes: Mapping[int, NodeProfile]) -> dict[int, Measured]:
    """Return the measurements to draw; a box inside a compiled region has no time of its own."""
    total = sum({node.name: node.time.median_ms for node in nodes.values()}.values())
    found: dict[int, Measured] = {}
    for box in drawn:
        node = nodes.get(box.number)
        if node is None:
            continue
        if node.kind == "compiled":
            found[box.number] = Measured(f"in {node.name}", None)
        else:
            ms = node.time.median_ms
            found[box.number] = Measured(_ms(ms), ms / max(total, 1e-9))
    return found


def of_box(box: Box, node: NodeProfile | None, profile: Profile | None) -> Details:
    """Return the details of a box, with its measurements if it was measured."""
    details: Details = {"name": box.name, "kind": box.kind, "does": box.text}
    details |= {"code": code_at(box.at), "at": relative(box.at)}
    if node is not None and profile is not None:
        details |= of_node(node, profile)
    elif box.load.bytes:
        details["bytes"] = f"{readable(box.load.bytes)} read and written"
    if box.load.flops and "operations" not in details:
        details["operations"] = f"{box.load.flops:,}"
    return details | {
        "reads": list(box.reads),
        "writes": list(box.writes),
        "operators": [f"{count} x {name}" for name, count in box.operators],
    }


def of_node(node: NodeProfile, profile: Profile) -> Details:
    """Return the measurements of a node."""
    details: Details = {
        "time": f"{node.time.median_ms:.3f} ms ({node.time.low_ms:.3f} to {node.time.high_ms:.3f})",
        "share": _share(node.time.median_ms, [other.time.median_ms for other in profile.nodes]),
        "launches": str(node.launches) if node.launches else "",
        "bytes": "" if not node.bytes_moved else f"{readable(node.bytes_moved)} read and written",
        "GB/s": rate(node.gbps, profile),
        "operations": f"{node.flops:,}, {node.gflops_per_s:.1f} GFLOP/s" if node.flops else "",
    }
    if node.kind == "compiled":
        details["compiled as"] = f"{node.name}: {', '.join(node.covers)}"
    return details


def of_span(node: NodeProfile, profile: Profile) -> Details:
    """Return the details of a node that is not a single box."""
    title = f"{node.name} {node.label}".rstrip()
    return {"name": title, "kind": node.kind, "at": relative(node.at), **of_node(node, profile)}


def of_operator(one: OperatorProfile, profile: Profile) -> Details:
    """Return the details of an operator."""
    return {
        "name": one.name,
        "launches": f"{one.launches} in a call of the step",
        "time": f"{one.time.median_ms:.3f} ms ({one.time.low_ms:.3f} to {one.time.high_ms:.3f})",
        "share": _share(one.time.median_ms, [o.time.median_ms for o in profile.operators]),
        "bytes": "" if not one.bytes_moved else f"{readable(one.bytes_moved)} read and written",
        "GB/s": rate(one.gbps, profile),
        "operations": f"{one.flops:,}" if one.flops else "",
        "in": list(one.nodes),
    }


def rate(gbps: float | None, profile: Profile) -> str:
    """Return the bandwidth in GB/s, with its share of the copy bandwidth."""
    if not gbps:
        return ""
    part = f", {gbps / profile.copy_gbps:.0%} of a copy" if profile.copy_gbps else ""
    return f"{gbps:.1f}{part}"


def code_at(at: str | None) -> str:
    """Return the source line at `file:line`, or an empty string if it cannot be read."""
    file, _, line = (at or "").rpartition(":")
    return linecache.getline(file, int(line)).strip() if line.isdigit() else ""


def relative(at: str | None) -> str:
    """Return `file:line`, relative to the current folder if the file is below it."""
    here = os.getcwd() + os.sep
    return (at or "").removeprefix(here)


def file_of(at: str | None) -> str:
    """Return `file:line` without folders."""
    return os.path.basename(at or "")


def _share(ms: float, times: Sequence[float]) -> str:
    return f"{ms / max(sum(times), 1e-9):.0%}"


def _ms(ms: float) -> str:
    return f"{ms:.2f} ms" if ms >= 0.1 else f"{ms * 1e3:.0f} µs"

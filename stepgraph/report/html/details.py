"""What a page says about a box, an operator or a span when it is clicked."""

from __future__ import annotations

import linecache
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stepgraph.ir import readable
from stepgraph.profiling import NodeProfile, OperatorProfile, Profile
from stepgraph.report.html.boxes import Box
from stepgraph.report.html.graph_svg import Measured

Facts = dict[str, object]


@dataclass
class Embedded:
    """What the script of a page needs.

    Attributes:
        facts: By key: what a click shows.
        memory: By key: for each operator where it is, its name, and what is alive.
        of_nodes: Keys of boxes after the passes, by the names of their nodes.
    """

    facts: dict[str, Facts] = field(default_factory=dict)
    memory: dict[str, list[list[str]]] = field(default_factory=dict)
    of_nodes: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return what goes into the page."""
        return {"facts": self.facts, "memory": self.memory}


def profiles_of(drawn: Sequence[Box], profile: Profile | None) -> dict[int, NodeProfile]:
    """Return what was measured of each box: a node of the profile that covers a node of it."""
    if profile is None:
        return {}
    covering = {name: node for node in profile.nodes for name in node.covers}
    found = ((box.number, next(filter(None, map(covering.get, box.nodes)), None)) for box in drawn)
    return {number: node for number, node in found if node is not None}


def measured(drawn: Sequence[Box], nodes: Mapping[int, NodeProfile]) -> dict[int, Measured]:
    """Return what a drawing shows of what was measured; no time of code across boxes."""
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


def of_box(box: Box, node: NodeProfile | None, profile: Profile | None) -> Facts:
    """Return the facts of a box, with what was measured of it."""
    facts: Facts = {"name": box.name, "kind": box.kind, "does": box.text}
    facts |= {"code": code_at(box.at), "at": relative(box.at)}
    if node is not None and profile is not None:
        facts |= of_node(node, profile)
    elif box.load.bytes:
        facts["bytes"] = f"{readable(box.load.bytes)} read and written"
    if box.load.flops and "operations" not in facts:
        facts["operations"] = f"{box.load.flops:,}"
    return facts | {
        "reads": list(box.reads),
        "writes": list(box.writes),
        "operators": [f"{count} x {name}" for name, count in box.operators],
    }


def of_node(node: NodeProfile, profile: Profile) -> Facts:
    """Return what was measured of a node."""
    facts: Facts = {
        "time": f"{node.time.median_ms:.3f} ms ({node.time.low_ms:.3f} to {node.time.high_ms:.3f})",
        "share": _share(node.time.median_ms, [other.time.median_ms for other in profile.nodes]),
        "launches": str(node.launches) if node.launches else "",
        "bytes": "" if not node.bytes_moved else f"{readable(node.bytes_moved)} read and written",
        "GB/s": rate(node.gbps, profile),
        "operations": f"{node.flops:,}, {node.gflops_per_s:.1f} GFLOP/s" if node.flops else "",
    }
    if node.kind == "compiled":
        facts["compiled as"] = f"{node.name}: {', '.join(node.covers)}"
    return facts


def of_span(node: NodeProfile, profile: Profile) -> Facts:
    """Return the facts of a node that is no single box."""
    title = f"{node.name} {node.label}".rstrip()
    return {"name": title, "kind": node.kind, "at": relative(node.at), **of_node(node, profile)}


def of_operator(one: OperatorProfile, profile: Profile) -> Facts:
    """Return the facts of an operator."""
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
    """Return billions of bytes in a second, and what part of a copy that is."""
    if not gbps:
        return ""
    part = f", {gbps / profile.copy_gbps:.0%} of a copy" if profile.copy_gbps else ""
    return f"{gbps:.1f}{part}"


def code_at(at: str | None) -> str:
    """Return the user's line, if its file is there."""
    file, _, line = (at or "").rpartition(":")
    return linecache.getline(file, int(line)).strip() if line.isdigit() else ""


def relative(at: str | None) -> str:
    """Return file and line, the file from here where it is below the present folder."""
    here = os.getcwd() + os.sep
    return (at or "").removeprefix(here)


def file_of(at: str | None) -> str:
    """Return file and line without folders."""
    return os.path.basename(at or "")


def _share(ms: float, times: Sequence[float]) -> str:
    return f"{ms / max(sum(times), 1e-9):.0%}"


def _ms(ms: float) -> str:
    return f"{ms:.2f} ms" if ms >= 0.1 else f"{ms * 1e3:.0f} µs"

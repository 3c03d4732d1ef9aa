"""What a page says about a profile: a timeline, the nodes, the operators."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise

from stepgraph.ir import readable
from stepgraph.profiling import Profile, Span
from stepgraph.profiling.trace import ROWS
from stepgraph.report.html.charts import draw_timeline
from stepgraph.report.html.details import Embedded, file_of, of_operator, of_span
from stepgraph.report.html.tables import Bar, Cell, name, number, table
from stepgraph.report.html.variant_section import TOOLS

_EAGER, _COMPILED, _BY_NODE, _BY_OPERATOR = ROWS


def measured_sections(profile: Profile, embedded: Embedded, key: str) -> Iterator[str]:
    """Yield the sections of a profile; the facts of its nodes are those of their boxes.

    Args:
        profile: What was measured.
        embedded: Receives what the page's script needs.
        key: What tells these sections from others on the page.
    """
    calls = f"medians of {profile.compiled.calls} calls each, in turns"
    yield f"<section><h2>Where the time goes</h2><p>Measured on {profile.device}: {calls}.</p>"
    yield from _timeline(profile, embedded, key)
    yield from _nodes(profile, embedded, key)
    yield from _operators(profile, embedded, key)
    yield "</section>"


def _timeline(profile: Profile, embedded: Embedded, key: str) -> Iterator[str]:
    keys = {
        f"{node.name} {node.label}".rstrip(): _key_of(i, profile, embedded, key)
        for i, node in enumerate(profile.nodes)
    }
    operators = {one.name: f"{key}o{i}" for i, one in enumerate(profile.operators)}
    lanes = []
    for row, title in (
        (_EAGER, "eager"),
        (_COMPILED, "compiled"),
        (_BY_NODE, "compiled, with a clock between nodes"),
        (_BY_OPERATOR, "compiled, with a clock between operators"),
    ):
        whole, inside = _typical_call(profile.spans, row)
        if whole is None:
            continue
        spans = inside or [whole]
        known = keys if row == _BY_NODE else operators
        lanes.append(
            (title, [_start(whole), *spans], ["", *(known.get(s.name, "") for s in spans)])
        )
    drawing = draw_timeline(lanes)
    if not drawing:
        return
    yield "<h3>Timeline of a typical call</h3>"
    yield f'<div class="figure zoomable" data-zoom="x">{drawing}{TOOLS}</div>'
    yield (
        '<p class="caption">Of each kind the call that is nearest to the medians. What is empty '
        "is the host: guards, inputs, results.</p>"
    )


def _typical_call(spans: Sequence[Span], row: str) -> tuple[Span | None, list[Span]]:
    """Return the call of a row that is nearest to the medians, and what is inside of it."""
    own = [span for span in spans if span.row == row]
    calls = [span for span in own if span.kind == "call"]
    inner = [span for span in own if span.kind != "call"]
    inside = [
        [span for span in inner if call.start_ns <= span.start_ns <= call.end_ns] for call in calls
    ]
    lengths = [
        [end - start for start, end in pairwise(_edges(call, found))]
        for call, found in zip(calls, inside, strict=True)
    ]
    medians = [statistics.median(times) for times in zip(*lengths, strict=False)]
    distances = [
        sum(abs(time - median) for time, median in zip(times, medians, strict=False))
        for times in lengths
    ]
    if not calls:
        return None, []
    place = distances.index(min(distances))
    return calls[place], inside[place]


def _edges(call: Span, inside: Sequence[Span]) -> list[int]:
    """Return the times at which something begins or ends in a call, in order."""
    return [call.start_ns, *(span.start_ns for span in inside), call.end_ns]


def _start(call: Span) -> Span:
    """Return an empty span where a call begins: lanes are drawn from there."""
    return Span(call.row, call.name, "host", call.start_ns, call.start_ns)


def _nodes(profile: Profile, embedded: Embedded, key: str) -> Iterator[str]:
    total = sum(n.time.median_ms for n in profile.nodes) + profile.host.median_ms
    longest = max((node.time.median_ms for node in profile.nodes), default=0.0)
    rows = [
        (
            name(f"{node.name} {node.label}".rstrip()),
            number(f"{node.time.median_ms:.3f}", node.time.median_ms),
            Bar(node.time.median_ms / max(longest, 1e-9), node.kind),
            number(f"{node.time.median_ms / max(total, 1e-9):.0%}", node.time.median_ms),
            number(str(node.launches), node.launches),
            number(f"{node.gflops_per_s:.1f}" if node.flops else "", node.gflops_per_s),
            _bytes(node.bytes_moved),
            number(f"{node.gbps:.1f}" if node.gbps else "", node.gbps),
            _of_copy(profile, node.gbps),
            Cell(file_of(node.at), None, "at"),
        )
        for node in profile.nodes
    ]
    head = ("node", "ms", "", "share", "launches", "GFLOP/s", "moved", "GB/s", "of copy", "")
    keys = [_key_of(i, profile, embedded, key) for i in range(len(profile.nodes))]
    yield "<h3>Nodes</h3>" + table(head, rows, keys=keys, sortable=True)


def _operators(profile: Profile, embedded: Embedded, key: str) -> Iterator[str]:
    if not profile.operators:
        return
    kinds = {covered: node.kind for node in profile.nodes for covered in node.covers}
    total = sum(one.time.median_ms for one in profile.operators)
    longest = max(one.time.median_ms for one in profile.operators)
    rows, keys = [], []
    for i, one in enumerate(profile.operators):
        keys.append(f"{key}o{i}")
        embedded.facts[keys[-1]] = of_operator(one, profile)
        kind = kinds.get(one.nodes[0], "compiled") if one.nodes else "compiled"
        rows.append(
            (
                name(one.name),
                number(str(one.launches), one.launches),
                number(f"{one.time.median_ms:.3f}", one.time.median_ms),
                Bar(one.time.median_ms / max(longest, 1e-9), kind),
                number(f"{one.time.median_ms / max(total, 1e-9):.0%}", one.time.median_ms),
                _bytes(one.bytes_moved),
                number(f"{one.gbps:.1f}" if one.gbps else "", one.gbps),
                _of_copy(profile, one.gbps),
            )
        )
    head = ("operator", "launches", "ms", "", "share", "moved", "GB/s", "of copy")
    yield "<h3>Operators</h3>" + table(head, rows, keys=keys, sortable=True)
    yield (
        '<p class="caption">All calls of an operator in one call of the step, a clock read ahead '
        "of each. What fits into a cache moves faster than a large copy does.</p>"
    )


def _key_of(index: int, profile: Profile, embedded: Embedded, key: str) -> str:
    """Return the key of the facts of a node: those of its box, if it is one box."""
    node = profile.nodes[index]
    if node.kind != "compiled" and node.covers and node.covers[0] in embedded.of_nodes:
        return embedded.of_nodes[node.covers[0]]
    own = f"{key}n{index}"
    embedded.facts.setdefault(own, of_span(node, profile))
    return own


def _bytes(moved: int | None) -> Cell:
    return number("?" if moved is None else readable(moved) if moved else "", moved)


def _of_copy(profile: Profile, gbps: float | None) -> Cell:
    part = gbps / profile.copy_gbps if gbps and profile.copy_gbps else None
    return number("" if part is None else f"{part:.0%}", part)

"""The section of a profile: timeline, table of nodes, table of operators."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise

from stepgraph.profiling import Profile, Span
from stepgraph.profiling.text import NODE_HEAD, OPERATOR_HEAD, bytes_text
from stepgraph.profiling.trace import ROWS
from stepgraph.report.html.charts import draw_timeline
from stepgraph.report.html.details import Embedded, file_of, of_operator, of_span
from stepgraph.report.html.figure import zoomable
from stepgraph.report.html.tables import Bar, Cell, name, number, table

_EAGER, _COMPILED, _BY_NODE, _BY_OPERATOR = ROWS


def measured_sections(profile: Profile, embedded: Embedded, key: str) -> Iterator[str]:
    """Yield the HTML of the section of a profile; a node shares the details of its box.

    Args:
        profile: The profile.
        embedded: Receives the details that the page's script shows.
        key: Prefix of the section's keys, unique on the page.
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
    yield zoomable(drawing, sideways=True)
    yield (
        '<p class="caption">One call of each kind, the nearest to the medians. Empty space is the '
        "host: guards, inputs, results.</p>"
    )


def _typical_call(spans: Sequence[Span], row: str) -> tuple[Span | None, list[Span]]:
    """Return the call of a row that is nearest to the medians, and the spans inside of it."""
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
    """Return the start of the call, the starts of its spans, and the end of the call."""
    return [call.start_ns, *(span.start_ns for span in inside), call.end_ns]


def _start(call: Span) -> Span:
    """Return an empty span at the start of a call, the origin of its lane."""
    return Span(call.row, call.name, "host", call.start_ns, call.start_ns)


def _nodes(profile: Profile, embedded: Embedded, key: str) -> Iterator[str]:
    total = profile.total_ms
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
    head = (NODE_HEAD[0], "ms", "", *NODE_HEAD[3:])
    keys = [_key_of(i, profile, embedded, key) for i in range(len(profile.nodes))]
    yield "<h3>Nodes</h3>" + table(head, rows, keys=keys, sortable=True)


def _operators(profile: Profile, embedded: Embedded, key: str) -> Iterator[str]:
    if not profile.operators:
        return
    kinds = {covered: node.kind for node in profile.nodes for covered in node.covers}
    total = profile.operators_ms
    longest = max(one.time.median_ms for one in profile.operators)
    rows, keys = [], []
    for i, one in enumerate(profile.operators):
        keys.append(f"{key}o{i}")
        embedded.details[keys[-1]] = of_operator(one, profile)
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
    head = (*OPERATOR_HEAD[:3], "", *OPERATOR_HEAD[3:])
    yield "<h3>Operators</h3>" + table(head, rows, keys=keys, sortable=True)
    yield (
        '<p class="caption">All calls of an operator in one call of the step; a clock is read '
        "before each. Tensors that fit into a cache move faster than a large copy.</p>"
    )


def _key_of(index: int, profile: Profile, embedded: Embedded, key: str) -> str:
    """Return the key of a node's details: those of its box, if it is one box."""
    node = profile.nodes[index]
    if node.kind != "compiled" and node.covers and node.covers[0] in embedded.of_nodes:
        return embedded.of_nodes[node.covers[0]]
    own = f"{key}n{index}"
    embedded.details.setdefault(own, of_span(node, profile))
    return own


def _bytes(moved: int | None) -> Cell:
    return number(bytes_text(moved), moved)


def _of_copy(profile: Profile, gbps: float | None) -> Cell:
    part = gbps / profile.copy_gbps if gbps and profile.copy_gbps else None
    return number("" if part is None else f"{part:.0%}", part)

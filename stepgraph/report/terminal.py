"""Explanations, profiles and step graphs in a terminal: colours, tables, bars."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stepgraph.compiler import Explanation
from stepgraph.compiler.explain import (
    Advice,
    FallbackReport,
    VariantReport,
    count_of,
    optimizer_lines,
    pass_differences,
)
from stepgraph.ir import StepGraph, lines
from stepgraph.passes import PassRecord
from stepgraph.profiling import NodeProfile, Profile
from stepgraph.profiling.text import (
    MOST_OPERATORS,
    NODE_HEAD,
    OPERATOR_HEAD,
    node_row,
    operator_row,
)
from stepgraph.report.palette import colour_of
from stepgraph.report.status import status_of

_MARKS = {"good": ("✔", "bold green"), "bad": ("✘", "bold red"), "open": ("○", "bold yellow")}
_BAR = 8


def to_rich(thing: Any) -> RenderableType:
    """Return an `Explanation`, a `Profile` or a `StepGraph` as a renderable of `rich`."""
    if isinstance(thing, Explanation):
        return Group(*_explanation(thing))
    if isinstance(thing, Profile):
        return Group(*_profile(thing))
    assert isinstance(thing, StepGraph)
    return _step(thing)


def _explanation(found: Explanation) -> Iterator[RenderableType]:
    mark, style = _MARKS[status_of(found)]
    yield Text.assemble((f"{mark} {found.name}", style), "  ", (found.verdict, "bold"))
    options = ", ".join(f"{name}={value!r}" for name, value in found.options.items())
    calls = f"{count_of(found.calls, 'call')}, {found.replays} replayed"
    yield Text(f"  {calls}{f'  ({options})' if options else ''}", "dim")
    for fallback in found.fallbacks:
        yield _fallback(fallback)
    for number, (variant, graphs) in enumerate(zip(found.variants, found.graphs, strict=True)):
        yield Padding(Group(*_variant(number, variant, graphs[1])), (1, 0, 0, 2))
    for closure in found.closures:
        yield Padding(Group(*_explanation(closure)), (1, 0, 0, 2))
    if found.advice:
        yield Padding(_advice(found.advice), (1, 0, 0, 2))


def _fallback(found: FallbackReport) -> RenderableType:
    text = Text.assemble(("  eager ", "red"), f"{found.count} x {found.reason}")
    if found.at:
        text.append(f"\n        at  {found.at}", "cyan")
    if found.hint:
        text.append(f"\n        try {found.hint}", "green")
    return text


def _variant(number: int, variant: VariantReport, graph: StepGraph) -> Iterator[RenderableType]:
    place = f"  {variant.place}" if variant.place else ""
    yield Text.assemble((f"variant {number}", "bold"), (place, "dim"))
    yield Text(variant.sentence)
    yield _chips(variant.nodes)
    for line in optimizer_lines(variant.optimizers):
        yield Text(line, "dim")
    if variant.passes:
        yield _passes(variant.passes)
    for region in variant.regions:
        yield Text(f"region of {count_of(region.operators, 'operator')}, {region.how}", "dim")
    replay = "not yet" if variant.replay_ms is None else f"{variant.replay_ms:.2f} ms"
    times = count_of(variant.replays, "time")
    yield Text(f"capture {variant.capture_ms:.0f} ms, replay {replay}, replayed {times}", "dim")
    yield _step(graph)


def _chips(nodes: dict[str, int]) -> Text:
    chips = [
        (f" {count} {kind} ", f"#ffffff on {colour_of(kind)}") for kind, count in nodes.items()
    ]
    return Text(" ").join(Text(text, style) for text, style in chips)


def _passes(records: Sequence[PassRecord]) -> Table:
    table = _table("pass", "what it changed", "ms")
    for record in records:
        changed = "\n".join([*record.did, *pass_differences(record)])
        style = "" if record.acted else "dim"
        name, text = Text(record.name), Text(changed or "nothing to do")
        table.add_row(name, text, f"{record.ms:.1f}", style=style)
    table.columns[2].justify = "right"
    return table


def _advice(found: Sequence[Advice]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_row("", Text("to get more", "bold"))
    for one in found:
        table.add_row("→", Text.assemble(one.what, "\n", (one.hint, "green")))
    return table


def _step(step: StepGraph) -> Table:
    """Return a table with a row for each typed node, or run of small nodes, in program order."""
    table = _table("", "kind", "does", "at")
    typed = [node for node in step.nodes if step.kind(node) is not None]
    for line in lines(step):
        kind, first = line.kind.value, line.nodes[0]
        at = os.path.basename(first.meta.get("stepgraph.at") or "")
        number = str(typed.index(first))
        name = Text(kind, f"bold {colour_of(kind)}")
        table.add_row(number, name, Text(line.text), Text(at, "cyan"))
    table.columns[0].justify = "right"
    return table


def _profile(found: Profile) -> Iterator[RenderableType]:
    yield Text(found.headline, "bold")
    whole = Table.grid(padding=(0, 2))
    for name, text in found.summary():
        whole.add_row(Text(f"  {name}", "dim"), text)
    yield whole
    yield _nodes(found)
    if found.operators:
        yield _operators(found)


def _nodes(found: Profile) -> Table:
    table = _table("node", *NODE_HEAD[2:], "")
    longest = max((node.time.median_ms for node in found.nodes), default=0.0)
    for node in found.nodes:
        row = node_row(node, total_ms=found.total_ms, copy_gbps=found.copy_gbps)
        name, label, *cells = row
        title = Text.assemble((name, f"bold {colour_of(node.kind)}"), (f" {label}", "dim"))
        table.add_row(title, *cells, _bar(node, longest))
    for column in table.columns[1:8]:
        column.justify, column.no_wrap = "right", True
    table.columns[-1].min_width = _BAR
    return table


def _operators(found: Profile) -> Table:
    table = _table(*OPERATOR_HEAD)
    for one in found.operators[:MOST_OPERATORS]:
        row = operator_row(one, total_ms=found.operators_ms, copy_gbps=found.copy_gbps)
        table.add_row(*row)
    for column in table.columns[1:]:
        column.justify = "right"
    more = len(found.operators) - MOST_OPERATORS
    table.caption = f"and {more} more" if more > 0 else None
    table.caption_justify = "left"
    return table


def _bar(node: NodeProfile, longest_ms: float) -> Text:
    length = round(_BAR * node.time.median_ms / longest_ms) if longest_ms else 0
    return Text("█" * length, colour_of(node.kind))


def _table(*titles: str) -> Table:
    table = Table(*titles, box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    return table

"""The section of a variant: step graph, memory, passes, optimizers, compiled regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from stepgraph.analysis import live_bytes
from stepgraph.compiler.explain import RegionReport, VariantReport, count_of, pass_differences
from stepgraph.ir import StepGraph, readable
from stepgraph.passes import PassRecord
from stepgraph.profiling import Profile
from stepgraph.report.html.boxes import boxes
from stepgraph.report.html.charts import LEFT, RIGHT, LiveBytes, draw_memory
from stepgraph.report.html.details import Embedded, measured, of_box, profiles_of
from stepgraph.report.html.figure import zoomable
from stepgraph.report.html.graph_svg import draw_step
from stepgraph.report.html.tables import Cell, name, number, table


def variant_section(
    variant: VariantReport,
    graphs: tuple[StepGraph, StepGraph],
    profile: Profile | None,
    embedded: Embedded,
    title: str,
    key: str,
) -> Iterator[str]:
    """Yield the HTML of the section of a variant.

    Args:
        variant: The variant's part of the explanation.
        graphs: The step graph before the passes and after them.
        profile: The variant's profile, if it was measured.
        embedded: Receives the details that the page's script shows.
        title: Title of the section.
        key: Prefix of the section's keys, unique on the page.
    """
    before, after = graphs
    place = f' <span class="soft">{escape(variant.place)}</span>' if variant.place else ""
    replay = "not yet" if variant.replay_ms is None else f"{variant.replay_ms:.2f} ms"
    yield f"<section><h2>{escape(title)}{place}</h2>"
    yield f"<p>{escape(variant.sentence)}</p>"
    yield (
        f'<p class="soft">{count_of(variant.operators, "operator")}, '
        f"{variant.launches} launches, backend {escape(variant.backend)}. Captured in "
        f"{variant.capture_ms:.0f} ms, replayed {count_of(variant.replays, 'time')}, shortest of "
        f"the first replays: {replay}.</p>"
    )
    yield from _graphs(variant, before, after, profile, embedded, key)
    yield from _memory(variant, before, after, embedded, key)
    yield from _passes(variant.passes)
    yield from _optimizers(variant)
    yield from _regions(variant.regions)
    yield f"<details><summary>As text</summary><pre>{escape(str(after))}</pre></details></section>"


def _graphs(
    variant: VariantReport,
    before: StepGraph,
    after: StepGraph,
    profile: Profile | None,
    embedded: Embedded,
    key: str,
) -> Iterator[str]:
    chips = (
        f'<span class="chip is-{escape(kind)}" data-kind="{escape(kind)}">{count} {escape(kind)}'
        "</span>"
        for kind, count in variant.nodes.items()
    )
    yield f'<div class="chips">{"".join(chips)}</div>'
    if not any(record.acted for record in variant.passes):
        yield _drawn(after, profile, embedded, f"{key}a")
    else:
        yield (
            '<div class="tabs" role="tablist">'
            f'<button role="tab" aria-selected="true" data-shows="{key}-after">after the passes'
            f'</button><button role="tab" aria-selected="false" data-shows="{key}-before">'
            "before the passes</button></div>"
        )
        yield f'<div id="{key}-after">{_drawn(after, profile, embedded, f"{key}a")}</div>'
        yield f'<div id="{key}-before" hidden>{_drawn(before, None, embedded, f"{key}b")}</div>'
    yield (
        '<p class="caption">A box stands below all boxes that must run before it. Solid: a value '
        "is used; red dashes: read before overwritten; blue dashes: order of two writes. Click a "
        "box for its details; drag to move, pinch or ctrl and wheel to zoom.</p>"
    )


def _drawn(step: StepGraph, profile: Profile | None, embedded: Embedded, key: str) -> str:
    drawn, arrows = boxes(step)
    nodes = profiles_of(drawn, profile)
    for box in drawn:
        details = of_box(box, nodes.get(box.number), profile)
        embedded.details[f"{key}-{box.number}"] = details
        if profile is not None:
            embedded.of_nodes.update((node, f"{key}-{box.number}") for node in box.nodes)
    drawing = draw_step(drawn, arrows, key, measured(drawn, nodes))
    return zoomable(drawing)


def _memory(
    variant: VariantReport, before: StepGraph, after: StepGraph, embedded: Embedded, key: str
) -> Iterator[str]:
    live = _live(after)
    earlier = _live(before) if any(record.acted for record in variant.passes) else []
    drawing = draw_memory(live, earlier)
    if not drawing:
        return
    peak = max(one.bytes for one in live)
    yield "<h3>Memory along the step</h3>"
    yield (
        f'<div class="figure memory" data-memory="{key}" data-left="{LEFT}" data-right="{RIGHT}">'
        f"{drawing}</div>"
    )
    was = max((one.bytes for one in earlier), default=peak)
    dashed = f" Dashed: before the passes, at most {readable(was)}." if earlier else ""
    yield (
        f'<p class="caption">At most {readable(peak)} of activations, gradients and results, if '
        f"operators run one by one; without parameters and optimizer state.{dashed}</p>"
    )
    embedded.memory[key] = [[one.where, one.operator, readable(one.bytes)] for one in live]


def _live(step: StepGraph) -> list[LiveBytes]:
    return [
        LiveBytes(
            where=str(node.meta.get("stepgraph.node", node.name)),
            operator=str(getattr(node.target, "__name__", node.target)),
            kind=getattr(node.meta.get("stepgraph.kind"), "value", ""),
            bytes=n_bytes,
        )
        for node, n_bytes in live_bytes(step.flat().graph).items()
    ]


def _passes(records: Sequence[PassRecord]) -> Iterator[str]:
    if not records:
        return
    rows = []
    for record in records:
        changed = "; ".join([*record.did, *pass_differences(record)])
        rows.append((name(record.name), changed or "nothing to do", number(f"{record.ms:.1f}", 0)))
    yield "<h3>Passes</h3>"
    yield table(
        ("pass", "what it changed", "ms"),
        rows,
        css=["" if record.acted else "idle" for record in records],
    )


def _optimizers(variant: VariantReport) -> Iterator[str]:
    if not variant.optimizers:
        return
    rows = (
        (
            name(one.label),
            number(str(one.tensors), one.tensors),
            number(f"{one.elements:,}", one.elements),
            Cell("fused" if one.fused else f"not fused: {one.why}"),
        )
        for one in variant.optimizers
    )
    yield "<h3>Optimizers</h3>" + table(("optimizer", "tensors", "elements", ""), rows)


def _regions(regions: Sequence[RegionReport]) -> Iterator[str]:
    if not regions:
        return
    rows = ((count_of(r.operators, "operator"), r.how) for r in regions)
    yield "<h3>Regions given to a compiler</h3>" + table(("region", ""), rows)

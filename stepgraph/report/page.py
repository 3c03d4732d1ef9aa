"""An explanation as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from stepgraph.analysis import live_bytes
from stepgraph.compiler import Explanation
from stepgraph.compiler.explanation import FallbackReport, VariantReport
from stepgraph.ir import StepGraph, flatten, readable
from stepgraph.profiling import Profile
from stepgraph.report.boxes import Box, boxes
from stepgraph.report.drawing import draw_memory, draw_step
from stepgraph.report.look import SCRIPT, STYLE


def to_html(explanation: Explanation, path: str | Path, profile: Profile | None = None) -> None:
    """Write an explanation as a page; see `Explanation.to_html`."""
    Path(path).write_text(page(explanation), encoding="utf-8")


def page(explanation: Explanation) -> str:
    """Return an explanation as HTML."""
    facts: dict[str, Box] = {}
    body = [*_explanation(explanation, facts, "s")]
    kept = {key: _facts_of(box) for key, box in facts.items()}
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(explanation.name)}: stepgraph</title>",
            f"<style>{STYLE}</style></head><body><main>",
            *body,
            "</main>",
            '<aside id="facts" hidden></aside>',
            f'<script type="application/json" id="data">{_embedded(kept)}</script>',
            f"<script>{SCRIPT}</script></body></html>",
        ]
    )


def _explanation(found: Explanation, facts: dict[str, Box], key: str) -> Iterator[str]:
    mood = "good" if found.captured else "bad" if found.fallback_reason else "open"
    yield f"<h1>{escape(found.name)}</h1>"
    yield f'<p class="verdict {mood}">{escape(found.verdict)}</p>'
    yield f"<p>{found.calls} calls, of which {found.replays} replayed.</p>"
    yield from _fallbacks(found.fallbacks)
    for number, (variant, graphs) in enumerate(zip(found.variants, found.graphs, strict=True)):
        yield from _variant(variant, graphs, number, facts, f"{key}{number}")
    for number, closure in enumerate(found.closures):
        yield from _explanation(closure, facts, f"{key}c{number}")


def _fallbacks(found: Sequence[FallbackReport]) -> Iterator[str]:
    if not found:
        return
    yield "<h2>Why it ran eagerly</h2>"
    rows = (
        (f"{fallback.count} x", fallback.reason, fallback.at or "", fallback.hint or "")
        for fallback in found
    )
    yield _table(("", "reason", "at", "try"), rows)


def _variant(
    variant: VariantReport,
    graphs: tuple[StepGraph, StepGraph],
    number: int,
    facts: dict[str, Box],
    key: str,
) -> Iterator[str]:
    counted = ", ".join(f"{count} {kind}" for kind, count in variant.nodes.items())
    replay = "not yet" if variant.replay_ms is None else f"{variant.replay_ms:.2f} ms"
    yield f"<section><h2>Variant {number}</h2>"
    yield (
        f"<p>{escape(counted)}; {variant.operators} operators. Captured in "
        f"{variant.capture_ms:.0f} ms, replayed {variant.replays} times, the quickest of the "
        f"first: {replay}.</p>"
    )
    yield _optimizers(variant)
    yield _passes(variant)
    yield from _regions(variant)
    before, after = graphs
    changed = any(record.acted for record in variant.passes)
    yield f"<h3>The step{', after the passes' if changed else ''}</h3>"
    yield _drawn(after, facts, f"{key}a")
    if changed:
        yield "<details><summary>The step as captured, before the passes</summary>"
        yield _drawn(before, facts, f"{key}b") + "</details>"
    yield from _memory(after)
    yield "</section>"


def _optimizers(variant: VariantReport) -> str:
    rows = (
        (o.label, str(o.tensors), f"{o.elements:,}", "fused" if o.fused else f"not fused: {o.why}")
        for o in variant.optimizers
    )
    return _table(("optimizer", "tensors", "elements", ""), rows)


def _passes(variant: VariantReport) -> str:
    rows = (
        (
            record.name,
            f"{record.nodes_before} → {record.nodes_after}",
            f"{record.operators_before} → {record.operators_after}",
            f"{record.flops_saved:,}" if record.flops_saved else "",
        )
        for record in variant.passes
    )
    return _table(("pass", "nodes", "operators", "operations saved"), rows)


def _regions(variant: VariantReport) -> Iterator[str]:
    if variant.regions:
        rows = (
            (f"{r.operators} operators", "compiled" if r.compiled else f"eager: {r.why}")
            for r in variant.regions
        )
        yield _table(("region", ""), rows)


def _drawn(step: StepGraph, facts: dict[str, Box], key: str) -> str:
    drawn, arrows = boxes(step)
    facts.update((f"{key}-{box.number}", box) for box in drawn)
    return f'<div class="drawing">{draw_step(drawn, arrows, key)}</div>'


def _memory(step: StepGraph) -> Iterator[str]:
    live = [
        (str(node.meta.get("stepgraph.node", node.name)), n_bytes)
        for node, n_bytes in live_bytes(flatten(step).graph).items()
    ]
    drawing = draw_memory(live)
    if drawing:
        where, highest = max(live, key=lambda item: item[1])
        yield "<h3>Memory along the step</h3>"
        yield (
            f"<p>At most {readable(highest)}, in {escape(where)}: activations, gradients and "
            "results, operators run one by one; not parameters and optimizer state.</p>"
        )
        yield drawing


def _facts_of(box: Box) -> dict[str, object]:
    return {
        "kind": box.kind,
        "name": box.name,
        "text": box.text,
        "at": box.at or "",
        "reads": box.reads,
        "writes": box.writes,
        "operators": [f"{count} x {name}" for name, count in box.operators],
    }


def _embedded(value: object) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{titles}</tr>{body}</table></div>'

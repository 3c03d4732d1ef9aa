"""An explanation as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from stepgraph.compiler.explain.advice import Advice
from stepgraph.compiler.explain.reports import (
    ExplanationData,
    FallbackReport,
    OptimizerReport,
    VariantReport,
    count_of,
)
from stepgraph.ir import readable
from stepgraph.passes import PassRecord

_WIDTH, _INDENT = 100, 15


def verdict(explanation: ExplanationData) -> str:
    """Return a summary of what was captured."""
    if explanation.closures:
        return "an optimizer keeps its own loop; its closure is captured"
    if explanation.captured:
        return f"captured whole, {count_of(explanation.captures, 'variant')}"
    if explanation.fallback_reason is not None:
        return f"runs eagerly: {explanation.fallback_reason}"
    if explanation.variants:
        return "captured, not replayed yet"
    return "not captured yet: the first call is eager, the second is captured"


def describe(explanation: ExplanationData, advice: Sequence[Advice]) -> str:
    """Return an explanation as plain text, with its advice."""
    lines = [f"{explanation.name}: {verdict(explanation)}", *_calls(explanation)]
    for number, variant in enumerate(explanation.variants):
        lines += _titled(f"variant {number}", variant_lines(variant))
    for closure in explanation.closures:
        lines += [f"  {line}" for line in str(closure).splitlines()]
    for fallback in explanation.fallbacks:
        lines += _fallback(fallback)
    for one in advice:
        lines += _titled("to get more", [one.what, f"  try {one.hint}"])
    if explanation.first_call_ms is not None:
        ms = explanation.first_call_ms
        lines += _titled("first call", [f"{ms:.2f} ms, eager, with lazy set-up: not comparable"])
    return "\n".join(lines)


def variant_lines(variant: VariantReport) -> list[str]:
    """Return the lines about a variant."""
    nodes = ", ".join(f"{count} {kind}" for kind, count in variant.nodes.items())
    lines = [f"for {variant.place}"] if variant.place else []
    lines += [variant.sentence, f"nodes: {nodes}"]
    lines += [f"{variant.operators} operators, {variant.launches} launches, {variant.backend}"]
    lines += list(optimizer_lines(variant.optimizers))
    lines += [pass_line(record) for record in variant.passes if record.acted]
    idle = ", ".join(record.name for record in variant.passes if not record.acted)
    lines += [f"nothing to do for {idle}"] if idle else []
    for region in variant.regions:
        lines.append(f"region of {count_of(region.operators, 'operator')}, {region.how}")
    lines += [f"CUDA graph: {variant.cuda_graph}"] if variant.cuda_graph else []
    replay = "not yet" if variant.replay_ms is None else f"{variant.replay_ms:.2f} ms"
    times = count_of(variant.replays, "time")
    return [*lines, f"capture {variant.capture_ms:.0f} ms, replay {replay}, replayed {times}"]


def optimizer_lines(optimizers: Sequence[OptimizerReport]) -> Iterator[str]:
    """Yield one line for each optimizer: its tensors and how it is run."""
    for one in optimizers:
        how = "fused" if one.fused else f"not fused: {one.why}"
        tensors = count_of(one.tensors, "tensor")
        note = f"; {one.note}" if one.note else ""
        yield f"{one.label}: {tensors}, {one.elements:,} elements, {how}{note}"


def pass_line(record: PassRecord) -> str:
    """Return what a pass changed, in numbers and in the sentences it recorded."""
    said = f": {'; '.join(record.did)}" if record.did else ""
    changed = "; ".join(pass_differences(record))
    return f"{record.name}{said}{'; ' if said and changed else ': ' if changed else ''}{changed}"


def pass_differences(record: PassRecord) -> Iterator[str]:
    """Yield what a pass changed: nodes, operators, launches, bytes, operations, gradients."""
    if record.nodes_before != record.nodes_after:
        yield f"{record.nodes_before} -> {record.nodes_after} nodes"
    if record.operators_before != record.operators_after:
        yield f"{record.operators_before} -> {record.operators_after} operators"
    if record.launches_saved:
        yield f"{_saved(record.launches_saved)} launches"
    if record.bytes_saved:
        yield f"{'-' if record.bytes_saved > 0 else '+'}{readable(abs(record.bytes_saved))} moved"
    if record.flops_saved:
        yield f"{_saved(record.flops_saved)} floating-point operations"
    if record.peak_bytes_before != record.peak_bytes_after:
        before, after = readable(record.peak_bytes_before), readable(record.peak_bytes_after)
        yield f"{before} -> {after} alive at the peak"
    names = [resource.removeprefix("grad:") for resource in record.lost if "grad:" in resource]
    if names:
        more = f", ... ({len(names)} in all)" if len(names) > 2 else ""
        yield f"not computed: gradients of {', '.join(names[:2])}{more}"


def _saved(number: int) -> str:
    return f"{-number:+,}"


def _calls(explanation: ExplanationData) -> list[str]:
    text = f"{explanation.calls}, of which replayed {explanation.replays}"
    options = ", ".join(f"{name}={value!r}" for name, value in explanation.options.items())
    return [*_titled("calls", [text]), *(_titled("options", [options]) if options else [])]


def _fallback(fallback: FallbackReport) -> list[str]:
    lines = [f"{fallback.count} x {fallback.reason}"]
    lines += [f"  at  {fallback.at}"] if fallback.at else []
    return _titled("eager", [*lines, *([f"  try {fallback.hint}"] if fallback.hint else [])])


def _titled(title: str, paragraphs: Sequence[str]) -> list[str]:
    """Return paragraphs, wrapped, after a title."""
    lines: list[str] = []
    for paragraph in paragraphs:
        own = " " * (len(paragraph) - len(paragraph.lstrip()))
        lines += textwrap.wrap(
            paragraph,
            _WIDTH,
            initial_indent=" " * _INDENT,
            subsequent_indent=" " * (_INDENT + 2) + own,
            break_long_words=False,
            break_on_hyphens=False,
        )
    if lines:
        lines[0] = f"  {title:<{_INDENT - 2}}" + lines[0][_INDENT:]
    return lines

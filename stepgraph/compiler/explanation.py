"""What was captured, said in the words of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepgraph.compiler import views
from stepgraph.compiler.fallbacks import Fallbacks
from stepgraph.compiler.variant import Variant
from stepgraph.ir import StepGraph
from stepgraph.passes import PassRecord


@dataclass(frozen=True)
class OptimizerReport:
    """An optimizer of a variant: how many tensors and elements, and how it is run."""

    label: str
    tensors: int
    elements: int
    fused: bool
    why: str


@dataclass(frozen=True)
class RegionReport:
    """A run of operators that was given to a compiler: whether it is compiled, or why not."""

    operators: int
    compiled: bool
    why: str


@dataclass(frozen=True)
class VariantReport:
    """A variant: nodes by kind, passes, optimizers, compiled regions, times in milliseconds."""

    nodes: dict[str, int]
    operators: int
    optimizers: tuple[OptimizerReport, ...]
    capture_ms: float
    replay_ms: float | None
    replays: int
    passes: tuple[PassRecord, ...] = ()
    regions: tuple[RegionReport, ...] = ()


@dataclass(frozen=True)
class FallbackReport:
    """A reason to run eagerly, where, how often, and what to try."""

    reason: str
    at: str | None
    count: int
    hint: str | None


@dataclass(frozen=True)
class Explanation:
    """What `CompiledStep.explain()` returns; prints itself.

    Attributes:
        name: The step's name.
        captured: Whether at least one variant has replayed.
        captures: Number of variants made.
        calls: Number of calls so far.
        replays: Number of calls that replayed a variant.
        fallback_reason: The latest reason to run eagerly, or None.
        fallbacks: All reasons, with counts.
        variants: One report for each variant.
        closures: Explanations of the closures of optimizers that keep their own loop (LBFGS).
        first_call_ms: Time of the first, eager call; includes lazy set-up, not comparable.
        graphs: For each variant the step graph as captured and the one after the passes.
    """

    name: str
    captured: bool
    captures: int
    calls: int
    replays: int
    fallback_reason: str | None
    fallbacks: tuple[FallbackReport, ...]
    variants: tuple[VariantReport, ...]
    first_call_ms: float | None
    closures: tuple[Explanation, ...] = ()
    graphs: tuple[tuple[StepGraph, StepGraph], ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation, but for its graphs, as dicts, lists, strings and numbers."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self._without_graphs()))
        return plain

    def to_html(self, path: str | Path) -> None:
        """Write a report to look at in a browser: one file that needs nothing else.

        Raises:
            OSError: The file cannot be written.
        """
        views.to_html(self, path)

    def _without_graphs(self) -> Explanation:
        closures = tuple(closure._without_graphs() for closure in self.closures)
        return dataclasses.replace(self, graphs=(), closures=closures)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.verdict}"]
        lines.append(f"  calls        {self.calls}, of which replayed {self.replays}")
        for i, variant in enumerate(self.variants):
            lines += _variant_lines(i, variant)
        for closure in self.closures:
            lines += [f"  {line}" for line in str(closure).splitlines()]
        for fallback in self.fallbacks:
            lines.append(f"  eager        {fallback.count} x {fallback.reason}")
            if fallback.at:
                lines.append(f"                 at  {fallback.at}")
            if fallback.hint:
                lines.append(f"                 try {fallback.hint}")
        if self.first_call_ms is not None:
            lines.append(
                f"  first call   {self.first_call_ms:.2f} ms, eager, with lazy set-up: "
                "not comparable"
            )
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        """What was captured, in one sentence."""
        if self.closures:
            return "an optimizer keeps its own loop; its closure is captured"
        if self.captured:
            plural = "" if self.captures == 1 else "s"
            return f"captured whole, {self.captures} variant{plural}"
        if self.fallback_reason is not None:
            return f"runs eagerly: {self.fallback_reason}"
        if self.variants:
            return "captured, not replayed yet"
        return "not captured yet: the first call is eager, the second is captured"


def _plain(value: Any) -> Any:
    """Return `value` with lists in the place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _variant_lines(index: int, variant: VariantReport) -> list[str]:
    nodes = ", ".join(f"{count} {kind}" for kind, count in variant.nodes.items())
    lines = [f"  variant {index}    {nodes}; {variant.operators} operators"]
    for optimizer in variant.optimizers:
        how = "fused" if optimizer.fused else f"not fused: {optimizer.why}"
        lines.append(
            f"               {optimizer.label}: {optimizer.tensors} tensors, "
            f"{optimizer.elements:,} elements, {how}"
        )
    lines += [f"               {line}" for line in _pass_lines(variant.passes)]
    for region in variant.regions:
        how = "compiled" if region.compiled else f"eager: {region.why}"
        lines.append(f"               region of {region.operators} operators, {how}")
    replay = "not yet" if variant.replay_ms is None else f"{variant.replay_ms:.2f} ms"
    lines.append(
        f"               capture {variant.capture_ms:.0f} ms, replay {replay}, "
        f"replayed {variant.replays} times"
    )
    return lines


def _pass_lines(records: Sequence[PassRecord]) -> list[str]:
    idle = ", ".join(record.name for record in records if not record.acted)
    lines = [_pass_line(record) for record in records if record.acted]
    return [*lines, f"nothing to do for {idle}"] if idle else lines


def _pass_line(record: PassRecord) -> str:
    line = (
        f"{record.name}: {record.nodes_before} -> {record.nodes_after} nodes, "
        f"{record.operators_before} -> {record.operators_after} operators"
    )
    if record.flops_saved:
        line += f", {record.flops_saved:,} floating-point operations saved"
    names = [resource.removeprefix("grad:") for resource in record.lost if "grad:" in resource]
    if names:
        more = f", ... ({len(names)} in all)" if len(names) > 2 else ""
        line += f", not computed: gradients of {', '.join(names[:2])}{more}"
    return line


def explain(
    *,
    name: str,
    variants: Sequence[Variant],
    captures: int,
    replays: int,
    calls: int,
    fallbacks: Fallbacks,
    first_call_ms: float | None,
    closures: Sequence[Explanation] = (),
) -> Explanation:
    """Describe the state of a compiled step."""
    return Explanation(
        name=name,
        captured=replays > 0 or any(closure.captured for closure in closures),
        captures=captures + sum(closure.captures for closure in closures),
        calls=calls,
        replays=replays,
        fallback_reason=str(fallbacks.latest) if fallbacks.latest else None,
        fallbacks=tuple(
            FallbackReport(refusal.reason, refusal.at, count, refusal.hint)
            for refusal, count in fallbacks.counts.items()
        ),
        variants=tuple(map(_report, variants)),
        first_call_ms=first_call_ms,
        closures=tuple(closures),
        graphs=tuple((variant.captured_graph, variant.graph) for variant in variants),
    )


def _report(variant: Variant) -> VariantReport:
    graph = variant.rewritten.flat.graph
    return VariantReport(
        nodes=variant.count(),
        operators=sum(node.op == "call_function" for node in graph.nodes),
        optimizers=tuple(
            OptimizerReport(
                label=subject.label,
                tensors=len(subject.parameters),
                elements=sum(p.numel() for p in subject.parameters),
                fused=(why := _why_not_fused(variant, subject.number)) is None,
                why=why or "",
            )
            for subject in variant.captured.optimizers
        ),
        capture_ms=variant.capture_ms,
        replay_ms=variant.replay_ms,
        replays=variant.program.calls,
        passes=variant.rewritten.records,
        regions=_regions(variant),
    )


def _why_not_fused(variant: Variant, number: int) -> str | None:
    update = variant.rewritten.lowered.updates.get(
        number, "the eager backend runs the optimizer's own step()"
    )
    return update if isinstance(update, str) else update.refusal


def _regions(variant: Variant) -> tuple[RegionReport, ...]:
    lowered = variant.rewritten.lowered
    made = (RegionReport(r.operators, r.refusal is None, r.refusal or "") for r in lowered.regions)
    refused = (RegionReport(operators, False, why) for operators, why in lowered.refused)
    return (*made, *refused)

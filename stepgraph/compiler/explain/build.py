"""Describes the state of a compiled step as an `Explanation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stepgraph.capture import CallOptions, TrackedOptimizer
from stepgraph.compiler.explain.explanation import Explanation
from stepgraph.compiler.explain.reports import (
    FallbackReport,
    OptimizerReport,
    RegionReport,
    VariantReport,
)
from stepgraph.compiler.fallbacks import Fallbacks, VariantLimit
from stepgraph.compiler.variants.variant import Variant
from stepgraph.ir import node_effect
from stepgraph.lowering import FusedUpdate, NotFused, Obstacle, launched, misfit


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
    options: Mapping[str, Any] | None = None,
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
            FallbackReport(
                refusal.reason,
                refusal.at,
                count,
                refusal.hint,
                at_variant_limit=isinstance(refusal, VariantLimit),
            )
            for refusal, count in fallbacks.counts.items()
        ),
        variants=tuple(map(_report, variants)),
        first_call_ms=first_call_ms,
        closures=tuple(closures),
        options=dict(options or {}),
        graphs=tuple((variant.captured_graph, variant.graph) for variant in variants),
    )


def _report(variant: Variant) -> VariantReport:
    graph = variant.rewritten.flat.graph
    stepped = {
        effect.argument(node, effect.optimizer_argument)
        for node in graph.nodes
        if (effect := node_effect(node)) is not None and effect.update is not None
    }
    return VariantReport(
        nodes=variant.count(),
        operators=sum(node.op == "call_function" for node in graph.nodes),
        optimizers=tuple(
            _optimizer(variant, tracked)
            for tracked in variant.captured.optimizers
            if tracked.number in stepped
        ),
        capture_ms=variant.capture_ms,
        replay_ms=variant.replay_ms,
        replays=variant.program.calls,
        passes=variant.rewritten.records,
        regions=_regions(variant),
        backend=variant.rewritten.backend,
        launches=launched(variant.rewritten.lowered.flat),
        place=_calls_of_window(variant.call_options),
        cuda_graph="" if variant.recording is None else str(variant.recording),
        parts=1 + max((node.meta.get("stepgraph.part") or 0 for node in graph.nodes), default=0),
    )


def _optimizer(variant: Variant, tracked: TrackedOptimizer) -> OptimizerReport:
    why, not_suitable = _why_not_fused(variant, tracked.number), misfit(tracked.value)
    lasting = not_suitable if variant.rewritten.backend == "eager" else why
    return OptimizerReport(
        label=tracked.label,
        tensors=len(tracked.parameters),
        elements=sum(p.numel() for p in tracked.parameters),
        fused=why is None,
        why="" if why is None else str(why),
        misfit="" if not_suitable is None else str(not_suitable),
        note=_note(variant, tracked),
        obstacle=None if lasting is None else lasting.obstacle,
    )


def _calls_of_window(call_options: CallOptions) -> str:
    """Return a description of the calls of a window that have these options."""
    if call_options.micro_batches == 1:
        return ""
    if call_options.clears:
        return f"the first call of a window of {call_options.micro_batches}"
    if call_options.updates:
        return f"the last call of a window of {call_options.micro_batches}"
    return f"the calls in the middle of a window of {call_options.micro_batches}"


def _note(variant: Variant, subject: TrackedOptimizer) -> str:
    """Return a note on an optimizer's update: the origin of its kernels, its master weights."""
    update = _update(variant, subject.number)
    if not {p.dtype for p in subject.parameters} & {torch.bfloat16, torch.float16}:
        if isinstance(update, FusedUpdate) and update.why_not() is None:
            return _kernel_origin(update.kinds)
        return ""
    if isinstance(update, FusedUpdate) and update.masters is not None and update.why_not() is None:
        return "float32 master weights and state"
    return "no float32 master weights: updates round to the dtype of the parameters"


def _kernel_origin(kinds: Sequence[str]) -> str:
    """Return the origin of the kernels of an update, as text; empty before its first run."""
    names = {"compiled": "stepgraph's own", "torch": "torch's", "triton": "Triton"}
    return f"in {' and '.join(names[kind] for kind in kinds)} kernels" if kinds else ""


def _why_not_fused(variant: Variant, number: int) -> NotFused | None:
    update = _update(variant, number)
    return update if isinstance(update, NotFused) else update.why_not()


def _update(variant: Variant, number: int) -> FusedUpdate | NotFused:
    """Return the fused update of an optimizer, or why its own `step()` runs."""
    updates = variant.rewritten.lowered.updates
    return updates.get(number, NotFused(Obstacle.EAGER_BACKEND))


def _regions(variant: Variant) -> tuple[RegionReport, ...]:
    lowered = variant.rewritten.lowered
    made = (
        RegionReport(r.operators, r.refusal is None, r.refusal or "", r.undriven or "")
        for r in lowered.regions
    )
    refused = (RegionReport(operators, False, why) for operators, why in lowered.refused)
    return (*made, *refused)

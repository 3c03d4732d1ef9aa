"""What was captured, said in the words of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepgraph.capture import CallOptions
from stepgraph.capture.objects import TrackedOptimizer
from stepgraph.compiler import extensions
from stepgraph.compiler.explain.advice import Advice, advice
from stepgraph.compiler.explain.text import describe, sentence, verdict
from stepgraph.compiler.fallbacks import Fallbacks
from stepgraph.compiler.variants.variant import Variant
from stepgraph.ir import StepGraph, node_effect
from stepgraph.lowering import FusedUpdate, launched, misfit
from stepgraph.passes import PassRecord

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class OptimizerReport:
    """An optimizer of a variant: how many tensors and elements, and how it is run.

    Attributes:
        label: Its class and what the user calls it.
        tensors: Parameters that it updates.
        elements: Elements of those.
        fused: Whether its update runs in a fused kernel.
        why: Why it does not, or empty.
        misfit: What stands against a fused kernel whatever the backend, or empty.
        note: What else there is to say about it, or empty.
    """

    label: str
    tensors: int
    elements: int
    fused: bool
    why: str
    misfit: str = ""
    note: str = ""


@dataclass(frozen=True)
class RegionReport:
    """A run of operators that was given to a compiler.

    Attributes:
        operators: How many.
        compiled: Whether it is compiled.
        why: Why it is not, or empty.
        undriven: Why its kernels are called from Python one by one, or empty.
    """

    operators: int
    compiled: bool
    why: str
    undriven: str = ""

    @property
    def how(self) -> str:
        """How it is run, in words."""
        if not self.compiled:
            return f"eager: {self.why}"
        return f"compiled, kernel by kernel: {self.undriven}" if self.undriven else "compiled"


@dataclass(frozen=True)
class VariantReport:
    """A variant: nodes by kind, passes, optimizers, compiled regions, times in milliseconds.

    Attributes:
        nodes: How many nodes there are of each kind.
        operators: ATen operators and effects.
        optimizers: What updates in it.
        capture_ms: Time it took to trace, rewrite and lower.
        replay_ms: The shortest of the first replays, or None.
        replays: How often it was replayed.
        passes: What each pass did.
        regions: What was given to a compiler.
        backend: What runs it: `eager` or `inductor`.
        launches: Operators and updates that compute something, after lowering: a compiled region
            and an optimizer are one each.
        place: Which calls of a window it is for; empty where every call is alike.
        parts: Into how many parts it splits the batch of a call.
        cuda_graph: What became of its CUDA graph; empty where there is no GPU.
    """

    nodes: dict[str, int]
    operators: int
    optimizers: tuple[OptimizerReport, ...]
    capture_ms: float
    replay_ms: float | None
    replays: int
    passes: tuple[PassRecord, ...] = ()
    regions: tuple[RegionReport, ...] = ()
    backend: str = "eager"
    launches: int = 0
    place: str = ""
    parts: int = 1
    cuda_graph: str = ""

    @property
    def sentence(self) -> str:
        """What was captured, in the words of training."""
        return sentence(self)


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
        options: The options of `compile` that are not the default.
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
    options: Mapping[str, Any] = field(default_factory=dict)
    graphs: tuple[tuple[StepGraph, StepGraph], ...] = field(default=(), repr=False, compare=False)

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        """What the user could change to get more."""
        return advice(self)

    @property
    def verdict(self) -> str:
        """What was captured, in a few words."""
        return verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation, but for its graphs, as dicts, lists, strings and numbers."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self._without_graphs()))
        for variant, own in zip(plain["variants"], self.variants, strict=True):
            variant["sentence"] = own.sentence
        return plain | {"advice": [dataclasses.asdict(one) for one in self.advice]}

    def to_html(self, path: str | Path, profile: Any = None) -> None:
        """Write a report to look at in a browser: one file that needs nothing else.

        Args:
            path: Where to; replaced if it exists.
            profile: A `Profile` of the step: its times stand at the nodes, and there is a timeline
                and a table of operators.

        Raises:
            OSError: The file cannot be written.
        """
        extensions.to_html(self, path, profile)

    def _without_graphs(self) -> Explanation:
        closures = tuple(closure._without_graphs() for closure in self.closures)
        return dataclasses.replace(self, graphs=(), closures=closures)

    def __str__(self) -> str:
        return describe(self)

    def __rich__(self) -> RenderableType:
        shown: RenderableType = extensions.to_rich(self)
        return shown


def _plain(value: Any) -> Any:
    """Return `value` with lists in the place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


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
            FallbackReport(refusal.reason, refusal.at, count, refusal.hint)
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
            OptimizerReport(
                label=subject.label,
                tensors=len(subject.parameters),
                elements=sum(p.numel() for p in subject.parameters),
                fused=(why := _why_not_fused(variant, subject.number)) is None,
                why=why or "",
                misfit=misfit(subject.value) or "",
                note=_note(variant, subject),
            )
            for subject in variant.captured.optimizers
            if subject.number in stepped
        ),
        capture_ms=variant.capture_ms,
        replay_ms=variant.replay_ms,
        replays=variant.program.calls,
        passes=variant.rewritten.records,
        regions=_regions(variant),
        backend=variant.rewritten.backend,
        launches=launched(variant.rewritten.lowered.flat),
        place=_place(variant.call_options),
        cuda_graph="" if variant.recording is None else str(variant.recording),
        parts=1 + max((node.meta.get("stepgraph.part") or 0 for node in graph.nodes), default=0),
    )


def _place(call_options: CallOptions) -> str:
    """Return which calls of a window have these call_options."""
    if call_options.micro_batches == 1:
        return ""
    if call_options.clears:
        return f"the first call of a window of {call_options.micro_batches}"
    if call_options.updates:
        return f"the last call of a window of {call_options.micro_batches}"
    return f"the calls in the middle of a window of {call_options.micro_batches}"


def _note(variant: Variant, subject: TrackedOptimizer) -> str:
    """Return what there is to say about an optimizer's update: whose kernel, which masters."""
    update = _update(variant, subject.number)
    if not {p.dtype for p in subject.parameters} & {torch.bfloat16, torch.float16}:
        if isinstance(update, FusedUpdate) and update.why_not() is None:
            return _whose(update.kinds)
        return ""
    if isinstance(update, FusedUpdate) and update.masters is not None and update.why_not() is None:
        return "float32 master weights and state"
    return "no float32 master weights: updates round to the type of the parameters"


def _whose(kinds: Sequence[str]) -> str:
    """Return whose kernels run an update, in words; empty before its trial."""
    names = {"compiled": "stepgraph's own", "torch": "torch's", "triton": "Triton"}
    return f"in {' and '.join(names[kind] for kind in kinds)} kernels" if kinds else ""


def _why_not_fused(variant: Variant, number: int) -> str | None:
    update = _update(variant, number)
    return update if isinstance(update, str) else update.why_not()


def _update(variant: Variant, number: int) -> FusedUpdate | str:
    """Return what updates in the place of an optimizer's own `step()`, or why nothing does."""
    updates = variant.rewritten.lowered.updates
    return updates.get(number, "the eager backend runs the optimizer's own step()")


def _regions(variant: Variant) -> tuple[RegionReport, ...]:
    lowered = variant.rewritten.lowered
    made = (
        RegionReport(r.operators, r.refusal is None, r.refusal or "", r.undriven or "")
        for r in lowered.regions
    )
    refused = (RegionReport(operators, False, why) for operators, why in lowered.refused)
    return (*made, *refused)

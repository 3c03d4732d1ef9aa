"""The parts of an explanation as data: variants, optimizers, regions and fallbacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepgraph.ir import StepGraph
from stepgraph.lowering import Obstacle
from stepgraph.passes import NOT_IN_DICT, PassRecord


@dataclass(frozen=True)
class OptimizerReport:
    """An optimizer of a variant: its numbers of tensors and elements, and how it is run.

    Attributes:
        label: Its class and the user's name for it.
        tensors: Number of parameters that it updates.
        elements: Number of their elements.
        fused: Whether its update runs in a fused kernel.
        why: Why it does not, or empty.
        misfit: Why no backend could run it in a fused kernel, or empty.
        note: Whose kernels run it, or which copies it keeps; may be empty.
        obstacle: What `misfit` says with the eager backend and `why` says with others, as a value.
    """

    label: str
    tensors: int
    elements: int
    fused: bool
    why: str
    misfit: str = ""
    note: str = ""
    obstacle: Obstacle | None = field(default=None, metadata=NOT_IN_DICT)


@dataclass(frozen=True)
class RegionReport:
    """A run of operators that was passed to a compiler.

    Attributes:
        operators: Number of operators.
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
        """How it is run, as text."""
        if not self.compiled:
            return f"eager: {self.why}"
        return f"compiled, kernel by kernel: {self.undriven}" if self.undriven else "compiled"


@dataclass(frozen=True)
class VariantReport:
    """A variant: nodes by kind, passes, optimizers, compiled regions, times in milliseconds.

    Attributes:
        nodes: Number of nodes of each kind.
        operators: Number of ATen operators and effects.
        optimizers: The optimizers that it updates.
        capture_ms: Time it took to trace, rewrite and lower.
        replay_ms: The shortest of the first replays, or None.
        replays: Number of replays.
        passes: The record of each pass.
        regions: The runs of operators that were passed to a compiler.
        backend: `eager` or `inductor`.
        launches: Number of operators and updates that compute something, after lowering: a
            compiled region and an optimizer count one each.
        place: The calls of a window that it is for; empty if all calls are the same.
        parts: Number of parts into which it splits the batch of a call.
        cuda_graph: The state of its CUDA graph; empty without a GPU.
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
        """What was captured, as one sentence."""
        return sentence(self)


@dataclass(frozen=True)
class FallbackReport:
    """A reason to run eagerly.

    Attributes:
        reason: The reason.
        at: The user's file and line, or None.
        count: How many calls ran eagerly for it.
        hint: What to try, or None.
        at_variant_limit: Whether the step has as many variants as are allowed.
    """

    reason: str
    at: str | None
    count: int
    hint: str | None
    at_variant_limit: bool = field(default=False, metadata=NOT_IN_DICT)


@dataclass(frozen=True)
class ExplanationData:
    """The fields of an `Explanation`."""

    name: str
    captured: bool
    captures: int
    calls: int
    replays: int
    fallback_reason: str | None
    fallbacks: tuple[FallbackReport, ...]
    variants: tuple[VariantReport, ...]
    first_call_ms: float | None
    closures: tuple[ExplanationData, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    graphs: tuple[tuple[StepGraph, StepGraph], ...] = field(default=(), repr=False, compare=False)


def sentence(variant: VariantReport) -> str:
    """Return what was captured, as one sentence.

    For example "captured whole: 2 forward, 2 backward, Adam(d_opt, 6 tensors) fused; removed 9
    operators; early update 121 of 148 (27 wait for: gradient norm)".
    """
    counted = [f"{variant.nodes[k]} {k}" for k in ("forward", "backward") if k in variant.nodes]
    parts = [", ".join([*counted, *_updates(variant.optimizers)])]
    parts += [f"the batch split into {variant.parts} parts"] if variant.parts > 1 else []
    removed = sum(r.operators_before - r.operators_after for r in variant.passes)
    parts += [f"removed {count_of(removed, 'operator')}"] if removed > 0 else []
    parts += [said for record in variant.passes for said in record.did]
    return "captured whole: " + "; ".join(parts)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _updates(optimizers: Sequence[OptimizerReport]) -> Iterator[str]:
    """Yield how the optimizers are run, grouped by the reason why they are not fused."""
    reasons: dict[str, list[str]] = {}
    for one in optimizers:
        kind, _, name = one.label.partition("(")
        inside = ", ".join(filter(None, [name.rstrip(")"), count_of(one.tensors, "tensor")]))
        how = "fused" if one.fused else f"not fused: {one.why}"
        reasons.setdefault(how, []).append(f"{kind}({inside})")
    yield from (f"{' and '.join(names)} {how}" for how, names in reasons.items())

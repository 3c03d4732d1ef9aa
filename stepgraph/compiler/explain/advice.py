"""Changes with which a step would run faster or use less memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepgraph.analysis import work
from stepgraph.compiler.explain.reports import ExplanationData, OptimizerReport, VariantReport
from stepgraph.ir import Role, StepGraph, flatten, partition, readable
from stepgraph.lowering import Obstacle
from stepgraph.optimizer_facts import with_fused_cpu_kernel
from stepgraph.passes import WITHOUT_GRADIENTS, DropDeadGradients, WaitFor, dropped_gradients

_WORTH = 2**20
"""Saving at the peak, in bytes, above which there is advice."""


@dataclass(frozen=True)
class Advice:
    """An obstacle to a faster or smaller step.

    Attributes:
        what: The obstacle.
        hint: What to change, and what it saves.
    """

    what: str
    hint: str


def advice(explanation: ExplanationData) -> tuple[Advice, ...]:
    """Return changes that would make a captured step cheaper, the most general first.

    Reasons of eager calls are not repeated: they have their own hints.
    """
    found: dict[Advice, None] = dict.fromkeys(_of_backend(explanation.variants))
    for variant, (captured, after) in zip(explanation.variants, explanation.graphs, strict=False):
        found |= dict.fromkeys(_of_optimizers(variant))
        found |= dict.fromkeys(_of_waiting(variant))
        if explanation.options.get("keep_grads", True):
            found |= dict.fromkeys(_of_gradients(captured, after))
    found |= dict.fromkeys(_of_variants(explanation))
    return tuple(found)


def _of_backend(variants: Sequence[VariantReport]) -> Iterator[Advice]:
    """Yield advice against the eager backend, which calls every operator separately."""
    eager = [variant for variant in variants if variant.backend == "eager"]
    if not eager:
        return
    optimizers = [one for variant in eager for one in variant.optimizers]
    fitting = list(dict.fromkeys(one.label for one in optimizers if not one.misfit))
    gain = "compiles the operators between effects"
    if fitting:
        gain += f" and runs {_listed(fitting)} in fused kernels"
    most = max(variant.launches for variant in eager)
    yield Advice(
        f'backend="eager" calls {most} operators one by one',
        f'backend="inductor": {gain}; rounds differently from eager',
    )


*_FIRST, _LAST = with_fused_cpu_kernel()

_FUSING = {
    Obstacle.IMPLEMENTATION_CHOSEN: "leave foreach and fused at their defaults",
    Obstacle.DIFFERENTIABLE_OR_CAPTURABLE: "leave differentiable and capturable at False",
    Obstacle.SEVERAL_DTYPES: "a param group for each dtype",
    Obstacle.STEP_REPLACED: "leave step() of the instance as torch wrote it",
    Obstacle.HOOKS: "do in the step what the optimizer's hooks do",
    Obstacle.NO_STATE: "leave parameters out that never get a gradient",
    Obstacle.NO_CPU_KERNEL: f"{', '.join(_FIRST)} and {_LAST} have one",
}
"""What lets an update be fused."""


def _of_optimizers(variant: VariantReport) -> Iterator[Advice]:
    """Advise on optimizers whose options prevent a fused update."""
    for optimizer in variant.optimizers:
        if optimizer.fused or optimizer.obstacle not in _FUSING:
            continue
        why = optimizer.misfit if variant.backend == "eager" else optimizer.why
        what = f"{_named(optimizer)} cannot be fused: {why}"
        yield Advice(what, _FUSING[optimizer.obstacle])


_WAITING = {
    WaitFor.GRADIENT_NORM: Advice(
        "updates wait for the norm of all gradients",
        "clip_grad_value_ clips each gradient by itself, without waiting",
    ),
    WaitFor.LOSS_SCALE: Advice(
        "updates wait until all gradients are known to be finite",
        'precision="bf16-mixed" needs no loss scale',
    ),
}


def _of_waiting(variant: VariantReport) -> Iterator[Advice]:
    """Advise on what delays updates until the end of the backward."""
    reasons = {reason for record in variant.passes for reason in record.reasons}
    yield from (told for reason, told in _WAITING.items() if reason in reasons)


def _of_gradients(captured: StepGraph, after: StepGraph) -> Iterator[Advice]:
    """Yield what `keep_grads=False` saves: gradients that are only kept to be cleared."""
    step, dropped = partition(flatten(captured)), frozenset[str]()
    for applied in WITHOUT_GRADIENTS:
        step = applied(step)
        if isinstance(applied, DropDeadGradients):
            dropped = dropped_gradients(step.flat().graph)
    now, then = work(after), work(step)
    slots = [node.meta["stepgraph.slot"] for node in step.nodes if node.op == "placeholder"]
    names = [slot.name for slot in slots if slot.role is Role.PARAM and slot.name in dropped]
    saved = []
    if now.flops > then.flops:
        saved.append(f"{(now.flops - then.flops) / now.flops:.0%} of all products")
    if now.peak_bytes - then.peak_bytes >= _WORTH:
        part = f"{readable(now.peak_bytes - then.peak_bytes)} of {readable(now.peak_bytes)}"
        saved.append(f"{part} at the peak")
    if not saved:
        return
    what = "gradients are kept until the next call, which clears them"
    if names:
        what = f"gradients of {_listed(names)} are computed, and cleared before anything reads them"
    hint = f"saves {' and '.join(saved)}, if nothing reads .grad between calls"
    yield Advice(what, f"keep_grads=False: {hint}")


def _of_variants(explanation: ExplanationData) -> Iterator[Advice]:
    if any(one.at_variant_limit for one in explanation.fallbacks):
        yield Advice(
            f"{explanation.captures} variants are the limit, and this step has more",
            "fewer shapes, flags or branches; STEPGRAPH_MAX_VARIANTS raises the limit",
        )


def _named(optimizer: OptimizerReport) -> str:
    return f"{optimizer.label} ({optimizer.tensors} tensors)"


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more

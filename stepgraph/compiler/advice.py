"""What a user could change to get more out of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepgraph.analysis import work
from stepgraph.ir import Role, StepGraph, flatten
from stepgraph.passes import DropDeadGradients, dropped_gradients

if TYPE_CHECKING:
    from stepgraph.compiler.explanation import Explanation, OptimizerReport, VariantReport


@dataclass(frozen=True)
class Advice:
    """Something that holds a step back.

    Attributes:
        what: What that is.
        hint: What to change, and what that gives.
    """

    what: str
    hint: str


def advice(explanation: Explanation) -> tuple[Advice, ...]:
    """Return what would make a captured step cheaper, the most general first.

    Reasons to run eagerly are not repeated: they carry hints of their own.
    """
    found: dict[Advice, None] = dict.fromkeys(_of_backend(explanation.variants))
    for variant, (captured, _) in zip(explanation.variants, explanation.graphs, strict=False):
        found |= dict.fromkeys(_of_optimizers(variant))
        found |= dict.fromkeys(_of_waiting(variant))
        if explanation.options.get("keep_grads", True):
            found |= dict.fromkeys(_of_dead_gradients(captured))
    found |= dict.fromkeys(_of_variants(explanation))
    return tuple(found)


def _of_backend(variants: Sequence[VariantReport]) -> Iterator[Advice]:
    """The eager backend calls every operator by itself."""
    eager = [variant for variant in variants if variant.backend == "eager"]
    if not eager:
        return
    optimizers = [one for variant in eager for one in variant.optimizers]
    fitting = list(dict.fromkeys(one.label for one in optimizers if not one.misfit))
    gain = "compiles what lies between effects"
    if fitting:
        gain += f" and runs {_listed(fitting)} in fused kernels"
    most = max(variant.launches for variant in eager)
    yield Advice(
        f'backend="eager" calls {most} operators one by one',
        f'backend="inductor": {gain}; rounds differently from eager',
    )


_FITS = {
    "its options choose another implementation": "leave foreach and fused at their defaults",
    "differentiable or capturable": "leave differentiable and capturable at False",
    "a param group of several dtypes": "a param group for each dtype",
    "its step() was replaced": "leave step() of the instance as torch wrote it",
    "code of the user's runs with step()": "do in the step what the optimizer's hooks do",
    "it has not stepped every parameter yet": "leave parameters out that never get a gradient",
}


def _of_optimizers(variant: VariantReport) -> Iterator[Advice]:
    """Options of an optimizer may stand against a fused update."""
    for optimizer in variant.optimizers:
        why = optimizer.misfit if variant.backend == "eager" else optimizer.why
        if optimizer.fused or not why:
            continue
        hint = _FITS.get(why)
        if why.startswith("no fused CPU kernel"):
            hint = "Adam, AdamW, SGD and Adagrad have one"
        if hint is not None:
            yield Advice(f"{_named(optimizer)} cannot be fused: {why}", hint)


def _of_waiting(variant: VariantReport) -> Iterator[Advice]:
    """A norm over all gradients keeps every update waiting for the last of them."""
    said = [sentence for record in variant.passes for sentence in record.did]
    if any("wait for" in sentence and "norm" in sentence for sentence in said):
        yield Advice(
            "updates wait for the norm of all gradients",
            "clip_grad_value_ clips each gradient by itself, without waiting",
        )


def _of_dead_gradients(captured: StepGraph) -> Iterator[Advice]:
    """Gradients that the next call clears unread need not be computed."""
    before = flatten(captured)
    after = flatten(DropDeadGradients()(captured))
    dropped = dropped_gradients(after.graph)
    slots = [node.meta["stepgraph.slot"] for node in before.graph.find_nodes(op="placeholder")]
    names = [slot.name for slot in slots if slot.role is Role.PARAM and slot.name in dropped]
    if not names:
        return
    whole, saved = work(before).flops, work(before).flops - work(after).flops
    share = f"{saved / whole:.0%} of all products" if saved else "no product"
    yield Advice(
        f"gradients of {_listed(names)} are computed, and cleared before anything reads them",
        f"keep_grads=False: saves {share}, if nothing reads .grad between calls",
    )


def _of_variants(explanation: Explanation) -> Iterator[Advice]:
    if any(one.reason.startswith("no variant for these inputs") for one in explanation.fallbacks):
        yield Advice(
            f"{explanation.captures} variants are the limit, and this step has more",
            "fewer shapes, flags or branches; STEPGRAPH_MAX_VARIANTS raises the limit",
        )


def _named(optimizer: OptimizerReport) -> str:
    return f"{optimizer.label} ({optimizer.tensors} tensors)"


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more

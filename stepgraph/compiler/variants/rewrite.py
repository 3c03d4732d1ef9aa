"""A captured step after the passes, lowered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch.fx import GraphModule

from stepgraph.capture import Captured
from stepgraph.errors import ConfigurationError
from stepgraph.ir import Role, Slot, StepGraph, partition
from stepgraph.lowering import Lowered, Masters, compile_region, lower
from stepgraph.passes import PassRecord, Pipeline, cleared_first, dropped_gradients


@dataclass(frozen=True)
class Rewritten:
    """A captured step after the passes, and its lowered graph.

    Attributes:
        captured: The result of the trace.
        graph: The step graph after the passes.
        flat: The same, as one flat graph of ATen nodes and markers.
        records: The record of each pass.
        dropped: Names of the parameters whose gradients differ from eager's after the call.
        clears: Parameters whose gradients are cleared before any other use.
        lowered: The graph to emit: the flat graph, or one with compiled regions.
        backend: `eager` or `inductor`.
    """

    captured: Captured
    graph: StepGraph
    flat: GraphModule
    records: tuple[PassRecord, ...]
    lowered: Lowered
    dropped: frozenset[str] = frozenset()
    clears: frozenset[str] = frozenset()
    backend: str = "eager"

    @cached_property
    def before(self) -> StepGraph:
        """The step graph as captured."""
        return partition(self.captured.flat)

    @property
    def slots(self) -> list[Slot]:
        """The slots of the inputs, in order."""
        nodes = self.flat.graph.nodes
        return [node.meta["stepgraph.slot"] for node in nodes if node.op == "placeholder"]

    @property
    def input_names(self) -> list[str]:
        """A name for every input."""
        return [f"{s.name}.grad" if s.role is Role.GRAD else s.name for s in self.slots]


def rewrite(
    captured: Captured,
    pipeline: Callable[[], Pipeline],
    backend: str,
    masters: Masters | None = None,
) -> Rewritten:
    """Cut a captured step into typed nodes, run the passes and lower the result.

    Args:
        captured: The result of the trace.
        pipeline: Makes the passes to run.
        backend: `"inductor"`, or another name for eager replay.
        masters: Float32 copies of weights and state for fused updates, or None.

    Raises:
        VerifyError: A pass left a step graph that does not verify.
    """
    passes = pipeline()
    graph, records = passes(partition(captured.flat))
    flat = graph.flat()
    return Rewritten(
        captured=captured,
        graph=graph,
        flat=flat,
        records=records,
        dropped=dropped_gradients(flat.graph),
        clears=cleared_first(graph),
        lowered=_lowered(captured, flat, backend, masters),
        backend="inductor" if backend == "inductor" else "eager",
    )


def _lowered(
    captured: Captured, flat: GraphModule, backend: str, masters: Masters | None
) -> Lowered:
    if backend != "inductor":
        return Lowered(flat)
    optimizers = {subject.number: subject.value for subject in captured.optimizers}
    return lower(flat, compile_region, optimizers, masters)


def check_dropped(dropped: frozenset[str], rewritten: Rewritten, step: str) -> None:
    """Check that a variant clears first the gradients that the call before has dropped.

    Raises:
        ConfigurationError: It uses one of them; nothing has run.
    """
    missed = sorted(dropped - rewritten.clears)
    if missed:
        raise ConfigurationError(
            f"{step} uses a gradient that was not kept",
            at=f"{missed[0]}.grad",
            found="a call that does not clear it first",
            why="keep_grads=False lets a call drop gradients that the next one clears",
            hint="keep_grads=True",
        )

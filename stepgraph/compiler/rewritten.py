"""A captured step after the passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import GraphModule

from stepgraph.capture import Captured
from stepgraph.ir import Role, Slot, StepGraph, flatten, partition
from stepgraph.passes import PassRecord, Pipeline


@dataclass(frozen=True)
class Rewritten:
    """What is lowered.

    Attributes:
        captured: What the trace gave.
        before: The step graph as captured.
        graph: The step graph after the passes.
        flat: The same, as one flat graph of ATen nodes and markers.
        records: What each pass did.
    """

    captured: Captured
    before: StepGraph
    graph: StepGraph
    flat: GraphModule
    records: tuple[PassRecord, ...]

    @property
    def slots(self) -> list[Slot]:
        """What the inputs are, in order."""
        nodes = self.flat.graph.nodes
        return [node.meta["stepgraph.slot"] for node in nodes if node.op == "placeholder"]

    @property
    def input_names(self) -> list[str]:
        """A name for every input."""
        return [f"{s.name}.grad" if s.role is Role.GRAD else s.name for s in self.slots]


def rewrite(captured: Captured, pipeline: Callable[[], Pipeline]) -> Rewritten:
    """Cut a captured step into typed nodes and run the passes over them.

    Raises:
        VerifyError: A pass left a step graph that does not verify.
    """
    passes = pipeline()
    before = partition(captured.flat)
    if not passes.passes:
        return Rewritten(captured, before, before, captured.flat, ())
    graph, records = passes(partition(captured.flat))
    return Rewritten(captured, before, graph, flatten(graph), records)

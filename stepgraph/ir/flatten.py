"""partition and flatten: the ways between a step graph and a flat graph of ATen nodes."""

from __future__ import annotations

from torch.fx import GraphModule

from stepgraph.ir.region import copied
from stepgraph.ir.step_graph import StepGraph


def partition(flat: GraphModule) -> StepGraph:
    """Return the step graph of a flat graph: ATen nodes and markers in program order.

    It is cut into regions, maximal runs of computing nodes of one kind and phase between two
    effects; see `cut` and `cut_out`.

    Args:
        flat: With the metadata of a capture. Unchanged; edits of it do not show in the step.
    """
    return StepGraph(copied(flat))


def flatten(step: StepGraph) -> GraphModule:
    """Return `step` as one flat graph of its own: regions dissolved, program order kept.

    Every node that belongs to a typed node has its name in `meta["stepgraph.node"]`.
    """
    return copied(step.flat())

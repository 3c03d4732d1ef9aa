"""The work of a flat graph, in numbers with which passes are compared."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from stepgraph.analysis.flops import flops
from stepgraph.analysis.memory import memory_of
from stepgraph.analysis.traffic import bytes_of
from stepgraph.ir import StepGraph, node_effect
from stepgraph.ir.memory_access import is_glue


@dataclass(frozen=True)
class Work:
    """The work of a step, if its operators run one by one.

    Attributes:
        launches: Number of operators and updates that compute something: at least one kernel each.
        bytes: Bytes that they read and write, without the state of optimizers.
        flops: Floating-point operations of products.
        peak_bytes: The largest number of bytes, allocated by the step, alive at once; see
            `live_bytes`.
    """

    launches: int
    bytes: int
    flops: int
    peak_bytes: int


def work(step: StepGraph) -> Work:
    """Return the work of a step, whose nodes carry fake tensors in `meta["val"]`."""
    flat, memory, storages = step.flat(), memory_of(step), step.storages()
    launched = [node for node in flat.graph.nodes if launches(node)]
    return Work(
        launches=len(launched),
        bytes=sum(bytes_of(node, storages, memory.sizes) or 0 for node in launched),
        flops=flops(flat),
        peak_bytes=memory.peak.bytes if memory.peak else 0,
    )


def launches(node: Node) -> bool:
    """Return whether a node of a flat graph computes something when it runs."""
    effect = node_effect(node)
    if effect is not None:
        return effect.launches
    return node.op == "call_function" and not is_glue(node)

"""Erase unused nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Graph, Node

from stepgraph.ir import Kind, StepGraph, draws_random, node_effect
from stepgraph.ir import written_arguments as written
from stepgraph.passes.base import Pass


@dataclass(frozen=True)
class DropUnusedNorm(Pass):
    """Drop the computation of an unused gradient norm or clipping factor.

    In the calls of a window that do not update, `clip_grad_norm_` clips nothing; its norm is used
    only if the step returns or logs it. Other unused values stay: eager computes them, and they
    may raise.

    Before::                                  After::

        norm = linalg_vector_norm(w.grad)         w.grad += g
        w.grad += g

    Preserves: every result, bit for bit.
    Cost: O(nodes).
    """

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the step without unused norms."""
        if not any(not node.users and _is_norm(node) for node in step.flat().graph.nodes):
            return step
        flat = step.take_flat()
        erase(flat.graph, _is_norm)
        return StepGraph(flat)


def _is_norm(node: Node) -> bool:
    """Return whether `node` is a pure computation of a norm or a clipping factor."""
    return node.meta.get("stepgraph.kind") in (Kind.GRAD_NORM, Kind.CLIP) and not is_effect(node)


def erase(graph: Graph, unwanted: Callable[[Node], bool]) -> None:
    """Erase the unwanted nodes whose values are unused, users first.

    Cost: O(nodes).
    """
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "get_attr") and not node.users and unwanted(node):
            graph.erase_node(node)


def is_effect(node: Node) -> bool:
    """Return whether `node` has a side effect: a marker, a write, a draw of random numbers."""
    if node.op != "call_function":
        return False
    effect = node_effect(node)
    if effect is not None:
        return not effect.removable
    return bool(written(node)) or draws_random(node)

"""Reduce a step to the update of a window of micro-batches that ends early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Graph, Node

from stepgraph.effects import FIRST_GRAD, calls
from stepgraph.errors import ConfigurationError
from stepgraph.ir import (
    Kind,
    Role,
    StepGraph,
    marker_kind,
    node_effect,
    writes_of,
)
from stepgraph.passes.base import Pass
from stepgraph.passes.dead_code import erase, is_effect

_UPDATE_KINDS = (Kind.UNSCALE, Kind.GRAD_NORM, Kind.CLIP)
"""Kinds of operators, other than effects, that belong to an update."""


@dataclass(frozen=True)
class UpdateFromShortWindow(Pass):
    """Keep only the update of the last call of a window, on corrected gradients.

    The gradients of a window were seeded with 1/n. If it ends after m calls, they are too small by
    the factor m/n.

    Before::                       After::

        g = backward(x, w)             w.grad *= n / m
        w.grad += g                    step(w, w.grad)
        step(w, w.grad)                w.grad = None
        w.grad = None

    Preserves: the update as a function of its gradients.
    Cost: O(nodes + edges).

    Attributes:
        factor: n / m.
    """

    keeps_effects: ClassVar[bool] = False

    factor: float

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the update alone; the step returns nothing.

        Raises:
            ConfigurationError: The update uses a value that only the forward pass computes.
        """
        flat = step.take_flat()
        graph = flat.graph
        effects = [node for node in graph.nodes if is_effect(node)]
        kept = {node for node in effects if _is_update(node)} | _clearings_after_update(graph)
        overwritten = {root for n in effects if n not in kept for root in writes_of(n)}
        for node in graph.nodes:
            if node.op == "output":
                node.args = ((),)
        _remove_missing_gradients(graph)
        erase(graph, lambda node: node not in kept)
        for node in graph.nodes:
            own = node.op != "call_function" or node in kept
            if not own and (is_effect(node) or node in overwritten):
                raise _needs_forward(node)
        self._correct(graph)
        return StepGraph(flat)

    def _correct(self, graph: Graph) -> None:
        """Multiply the gradients before everything else."""
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        gradients = [n for n in inputs if n.meta["stepgraph.slot"].role is Role.GRAD]
        with graph.inserting_after(inputs[-1]):
            for node in reversed(gradients):
                args = (node, self.factor)
                scaled = graph.call_function(torch.ops.aten.mul_.Scalar, args)
                scaled.meta = {"val": node.meta.get("val"), "stepgraph.kind": Kind.UNSCALE}


def _is_update(node: Node) -> bool:
    effect = node_effect(node)
    if effect is not None:
        return effect.short_window == "runs"
    return node.meta.get("stepgraph.kind") in _UPDATE_KINDS


def _clearings_after_update(graph: Graph) -> set[Node]:
    """Return the `zero_grad` that follows an update."""
    updated = False
    found = set()
    for node in graph.nodes:
        updated = updated or marker_kind(node) is Kind.STEP
        if updated and (marker_kind(node) or node.meta.get("stepgraph.kind")) is Kind.ZERO_GRAD:
            found.add(node)
    return found


def _needs_forward(node: Node) -> ConfigurationError:
    return ConfigurationError(
        "a short window cannot be flushed",
        at=node.meta.get("stepgraph.at"),
        found=f"the update uses {node.name}, which only a whole call computes",
        why="a flush updates from the gradients alone",
        hint="call a schedule that reads the loss outside of the step",
    )


def _remove_missing_gradients(graph: Graph) -> None:
    """Remove gradients that do not exist yet from the arguments of updates."""
    for node in graph.nodes:
        effect = node_effect(node)
        if effect is not None and effect.short_window == "runs":
            given = [list(a) if isinstance(a, list | tuple) else a for a in node.args]
            for argument in given:
                if isinstance(argument, list):
                    argument[:] = [v for v in argument if not calls(v, FIRST_GRAD)]
            node.args = tuple(given)

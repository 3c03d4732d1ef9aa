"""Drop gradients that are never read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, Node

from stepgraph.effects import ADD_GRAD, FIRST_GRAD, OPS, SET_GRAD, ZERO_GRAD, calls
from stepgraph.ir import (
    Access,
    Kind,
    Role,
    Slot,
    StepGraph,
    marker_argument,
    slot_name,
)
from stepgraph.passes.base import Pass
from stepgraph.passes.dead_code import erase, is_effect

DROPPED = "stepgraph.dropped"
"""Marks where a gradient becomes None although eager keeps it."""


@dataclass(frozen=True)
class DropDeadGradients(Pass):
    """Drop additions to a gradient that is not read before it is cleared.

    In a GAN, the generator's backward runs through the discriminator and adds gradients to its
    weights that are not used: the next call clears them. Without the additions, the matrix
    products that compute them are dropped too. The gradient becomes None instead.

    Legal if this step clears the slot before any other use, no node after the addition reads it,
    and the step does not return it. That no code reads it *between* calls is the caller's promise,
    `keep_grads=False`; that the next call also clears it first is checked in that call.

    Before::                                After::

        D.w.grad = None                         D.w.grad = None
        D.w.grad = backward(loss_d)             D.w.grad = backward(loss_d)
        step(D)                                 step(D)
        gG, gD = backward(loss_g)               gG = backward(loss_g)
        D.w.grad += gD                          D.w.grad = None
        G.w.grad = gG                           G.w.grad = gG

    Preserves: every result, weight and state, bit for bit; not `.grad` between calls.
    Cost: O(nodes + edges).
    """

    keeps_effects: ClassVar[bool] = False

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the step without gradients that are never read."""
        dead = _dead_stores(step)
        if not dead:
            return step
        flat = step.take_flat()
        graph = flat.graph
        params = parameters(graph)
        for store, slot in dead:
            _store_none(graph, store, params[slot])
        erase(graph, lambda node: _is_product(node) or calls(node, FIRST_GRAD))
        return StepGraph(flat)


def _dead_stores(step: StepGraph) -> list[tuple[Node, str]]:
    """Return the nodes that store or add gradients that are not read afterwards, with slots."""
    access = step.accesses()
    unread = set(cleared_first(step)) - _returned(step)
    dead: list[tuple[Node, str]] = []
    for node in reversed(step.flat().graph.nodes):
        if node.op in ("output", "placeholder"):
            continue
        slot = _stored_slot(node, access[node])
        if slot is not None and slot in unread:
            dead.append((node, slot))
            continue
        if calls(node, SET_GRAD):
            continue  # its users read the value
        unread -= {_name(resource) for resource in access[node].reads}
    return dead


def _returned(step: StepGraph) -> set[str]:
    """Return the slots whose gradients, or views of them, the step returns."""
    storages = step.storages()
    nodes = step.flat().graph.nodes
    (output,) = (node for node in nodes if node.op == "output")
    seen = {root for value in output.all_input_nodes for root in storages[value]}
    return {
        slot_name(marker_argument(node, "param"))
        for node in nodes
        if calls(node, SET_GRAD)
        and (grad := marker_argument(node, "grad")) is not None
        and storages[grad] & seen
    }


def cleared_first(step: StepGraph) -> frozenset[str]:
    """Return the slots whose gradients a step clears before any other use."""
    touched: set[str] = set()
    cleared: set[str] = set()
    for node, access in step.accesses().items():
        if calls(node, ZERO_GRAD):
            names = {slot_name(param) for param in marker_argument(node, "params")}
            cleared |= names - touched
        elif node.op not in ("placeholder", "output"):
            touched |= {_name(resource) for resource in access.reads | access.writes}
    return frozenset(cleared)


def dropped_gradients(graph: Graph) -> frozenset[str]:
    """Return the slots whose gradients the pass has made None."""
    nodes = (node for node in graph.nodes if node.meta.get(DROPPED))
    return frozenset(slot_name(marker_argument(node, "param")) for node in nodes)


def parameters(graph: Graph) -> dict[str, Node]:
    """Return the placeholders of the parameters of a flat graph, by slot."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    slots: dict[Node, Slot] = {node: node.meta["stepgraph.slot"] for node in inputs}
    return {slot.name: node for node, slot in slots.items() if slot.role is Role.PARAM}


def _stored_slot(node: Node, access: Access) -> str | None:
    """Return the slot of the gradient that a backward stores or adds to in `node`."""
    if calls(node, SET_GRAD):
        value = marker_argument(node, "grad")
        is_new = calls(value, FIRST_GRAD)
        param = marker_argument(node, "param")
        return slot_name(param) if is_new and len(value.users) == 1 else None
    if calls(node, ADD_GRAD):
        (slot, *others) = [_name(r) for r in sorted(access.writes) if r.startswith("grad:")] or [""]
        return slot if slot and not others else None
    return None


def _store_none(graph: Graph, store: Node, param: Node) -> None:
    """Clear the slot in place of a store."""
    with graph.inserting_before(store):
        cleared = graph.call_function(OPS.set_grad.default, (param, None))
    cleared.meta = {**store.meta, "val": None, DROPPED: True}
    graph.erase_node(store)


def _is_product(node: Node) -> bool:
    """Return whether `node` is a pure computation of a backward."""
    return node.meta.get("stepgraph.kind") is Kind.BACKWARD and not is_effect(node)


def _name(resource: str) -> str:
    """Return the slot of a gradient; empty for any other resource."""
    return resource.removeprefix("grad:") if resource.startswith("grad:") else ""

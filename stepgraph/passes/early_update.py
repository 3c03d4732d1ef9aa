"""Move updates up to where their gradients are final, and free the gradients there."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch.fx import Graph, Node

from stepgraph.analysis import launches, may_raise, size_of
from stepgraph.effects import FIRST_GRAD, OPS, SET_GRAD, STEP, ZERO_GRAD, calls
from stepgraph.ir import (
    OPAQUE,
    Access,
    Kind,
    StepGraph,
    marker_argument,
    marker_kind,
    marker_name,
    slot_name,
    updates,
)
from stepgraph.ir.memory_access import is_glue
from stepgraph.passes.base import Pass

EARLY = "stepgraph.early"
"""Metadata key of nodes that this pass has moved up."""


class WaitFor(Enum):
    """The reason why the update of a parameter does not move; `{}` is a detail."""

    GRADIENT_NORM = "wait for: gradient norm"
    LOSS_SCALE = "wait for: loss scale"
    LEARNING_RATE = "wait for: learning rate"
    BACKWARD = "wait for: the end of the backward"
    MAY_RAISE = "wait for: {}, which may raise"
    EARLIER_CALLS = "wait for: gradients of calls before"
    WHOLE_STEP = "wait for: a step() that is not divided"
    FULL_BUCKET = "wait for: a full bucket"
    KEPT_GRADIENT = "keep their .grad"


@dataclass(frozen=True)
class Wait:
    """A reason not to move the update of a parameter; prints as a sentence.

    Attributes:
        reason: Why.
        detail: The operator, where it is named.
    """

    reason: WaitFor
    detail: str = ""

    def __str__(self) -> str:
        return self.reason.value.format(self.detail)


@dataclass(frozen=True)
class EarlyUpdate(Pass):
    """Update parameters during the backward, and free their gradients.

    In eager mode all gradients are alive before the first update. If a parameter is updated right
    after the last use of its old weight, its gradient is freed there, and the peak is that of the
    activations alone. Parameters are updated in buckets: one call for each would cost more than it
    saves.

    Before::                                After::

        g2 = backward(...)                      g2 = backward(...)
        w2.grad = g2                            w2.grad = g2
        g1 = backward(...)                      step(w2, w2.grad)
        w1.grad = g1                            w2.grad = None
        step(w1, w1.grad, w2, w2.grad)          g1 = backward(...)
        w1.grad = None                          w1.grad = g1
        w2.grad = None                          step(w1, w1.grad)
                                                w1.grad = None

    Legal for a parameter if no node between the two positions reads or writes its weight, its
    gradient, its state or the hyper-parameters, and none may raise. It is done only if this step
    computes the gradient and clears it after the update.

    Preserves: every result, bit for bit. After an interrupt or an out-of-memory error in the
    middle of a backward, some parameters are already updated.
    Cost: O(nodes + edges + parameters log nodes).

    Attributes:
        bucket_bytes: Least number of gradient bytes in a bucket.
    """

    bucket_bytes: int = 4 * 2**20

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the step with updates in buckets, each where its gradients are final."""
        found = list(self._plans(step))
        if sum(plan.bytes for plan in found) < self.bucket_bytes:
            return step
        waits: Counter[Wait] = sum((plan.waits for plan in found), Counter())
        step.say(_sentence(found, waits), *(wait.reason for wait in waits))
        if not any(plan.buckets for plan in found):
            return step
        flat = step.take_flat()
        for plan in found:
            _divide_update(plan)
        return StepGraph(flat)

    def _plans(self, step: StepGraph) -> Iterator[_Plan]:
        timeline = _Timeline(step)
        for node in timeline.nodes:
            if calls(node, STEP):
                yield self._plan(node, timeline)

    def _plan(self, node: Node, timeline: _Timeline) -> _Plan:
        """Decide for every parameter of an update whether and where it moves."""
        plan = _Plan(node)
        if not node.meta.get("stepgraph.divisible", False):
            plan.waits[Wait(WaitFor.WHOLE_STEP)] = len(marker_argument(node, "params"))
            return plan
        moves = []
        for position, (slot, access) in enumerate((updates(node) or {}).items()):
            move = timeline.move(node, position, slot, access)
            if isinstance(move, Wait):
                plan.waits[move] += 1
            elif move is not None:
                moves.append(move)
        moves.sort(key=lambda move: timeline.order[move.behind])
        plan.fill(moves, self.bucket_bytes)
        return plan


@dataclass(frozen=True)
class _Move:
    """A parameter's update that may move up.

    Attributes:
        position: Its index among the parameters of the optimizer.
        grad: Its gradient.
        behind: The node after which it may run.
        stores: The nodes that make the gradient and store it; they move along.
        clearing: The node that clears the gradient afterwards.
    """

    position: int
    grad: Node
    behind: Node
    stores: tuple[Node, ...]
    clearing: Node


@dataclass
class _Plan:
    """The division of an update into parts.

    Attributes:
        node: The update.
        buckets: The parts that move up, in the order of their new positions.
        waits: The reasons why parameters stay, with counts.
    """

    node: Node
    buckets: list[list[_Move]] = field(default_factory=list)
    waits: Counter[Wait] = field(default_factory=Counter)

    def fill(self, moves: Sequence[_Move], bucket_bytes: int) -> None:
        """Put moves into buckets, in order; those of the last one stay unless it is full."""
        bucket: list[_Move] = []
        held = 0
        for move in moves:
            bucket.append(move)
            held += size_of(move.grad.meta.get("val"))
            if held >= bucket_bytes:
                self.buckets.append(bucket)
                bucket, held = [], 0
        if bucket:
            self.waits[Wait(WaitFor.FULL_BUCKET)] += len(bucket)

    @property
    def moved(self) -> int:
        return sum(map(len, self.buckets))

    @property
    def bytes(self) -> int:
        return sum(size_of(g.meta.get("val")) for g in marker_argument(self.node, "grads"))


class _Timeline:
    """The positions of all reads, writes and barriers in a flat graph."""

    def __init__(self, step: StepGraph) -> None:
        self.nodes = list(step.flat().graph.nodes)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.access = step.accesses()
        self.reads: dict[str, list[int]] = defaultdict(list)
        self.writes: dict[str, list[int]] = defaultdict(list)
        self.barriers: list[int] = []
        self.computing: list[int] = []
        self.grads: dict[Node, dict[str, Node]] = {}
        stored: dict[str, Node] = {}
        for i, node in enumerate(self.nodes):
            self._note(i, node)
            if calls(node, SET_GRAD) and marker_argument(node, "grad") is not None:
                stored[slot_name(marker_argument(node, "param"))] = marker_argument(node, "grad")
            elif calls(node, STEP):
                self.grads[node] = dict(stored)

    def move(self, node: Node, position: int, slot: str, access: Access) -> _Move | Wait | None:
        """Return the move of a parameter, the reason why it stays, or None without a gradient."""
        grad = self.grads[node].get(slot)
        if f"grad:{slot}" not in self.access[node].reads or grad is None:
            return None
        clearing = self._clearing(node, slot)
        if clearing is None:
            return Wait(WaitFor.KEPT_GRADIENT)
        if grad.op != "call_function":
            return Wait(WaitFor.EARLIER_CALLS)
        stores = self._stores(node, slot, grad)
        behind = self._latest(node, grad, stores, access)
        between = slice(bisect_left(self.computing, behind + 1), None)
        if not any(i < self.order[node] for i in self.computing[between][:1]):
            return _why(self.nodes[behind])
        return _Move(position, grad, self.nodes[behind], stores, clearing)

    def _note(self, i: int, node: Node) -> None:
        access = self.access[node]
        for resource in access.reads:
            self.reads[resource].append(i)
        for resource in access.writes:
            self.writes[resource].append(i)
        if may_raise(node) or OPAQUE in access.writes:
            self.barriers.append(i)
        elif launches(node):
            self.computing.append(i)

    def _latest(self, node: Node, grad: Node, stores: tuple[Node, ...], access: Access) -> int:
        """Return the last position before an update that it and its stores must follow."""
        own = {self.order[store] for store in stores}
        touched = [self.writes[resource] for resource in sorted(access.reads | access.writes)]
        touched += [self.reads[resource] for resource in sorted(access.writes)]
        positions = [_last_before(self.order[node], own, of) for of in (*touched, self.barriers)]
        sources = grad.all_input_nodes if stores else [grad]
        return max(*map(self._made, sources), *positions)

    def _made(self, node: Node) -> int:
        """Return the position at which the value of `node` is computed, through views."""
        if node.op == "call_function" and is_glue(node):
            return max(map(self._made, node.all_input_nodes), default=self.order[node])
        return self.order[node]

    def _stores(self, node: Node, slot: str, grad: Node) -> tuple[Node, ...]:
        """Return the nodes that store the gradient, if none accesses it before the update."""
        before = max(
            _last_before(self.order[node], (), of)
            for of in (self.reads[f"grad:{slot}"], self.writes[f"grad:{slot}"])
        )
        store = self.nodes[before]
        is_new = calls(grad, FIRST_GRAD) and calls(store, SET_GRAD)
        if not is_new or marker_argument(store, "grad") is not grad:
            return ()
        others = set(grad.users) - {store, node}
        return () if any(user.op != "output" for user in others) else (grad, store)

    def _clearing(self, node: Node, slot: str) -> Node | None:
        """Return the `zero_grad` of a slot, if it is the first access to it after `node`."""
        resource, here = f"grad:{slot}", self.order[node]
        after = [
            _first_after(here, self.reads[resource]),
            _first_after(here, self.writes[resource]),
        ]
        first: Node | None = self.nodes[min(after)] if min(after) < len(self.nodes) else None
        if first is None or marker_kind(first) is not Kind.ZERO_GRAD:
            return None
        return first


def _last_before(here: int, besides: Collection[int], positions: list[int]) -> int:
    i = bisect_left(positions, here) - 1
    while i >= 0 and positions[i] in besides:
        i -= 1
    return positions[i] if i >= 0 else -1


def _first_after(here: int, positions: list[int]) -> int:
    i = bisect_left(positions, here + 1)
    return positions[i] if i < len(positions) else 2**62


def _why(blocker: Node) -> Wait:
    """Return the reason why an update cannot move before `blocker`."""
    kind = marker_kind(blocker) or blocker.meta.get("stepgraph.kind")
    if kind in (Kind.GRAD_NORM, Kind.CLIP):
        return Wait(WaitFor.GRADIENT_NORM)
    if kind is Kind.UNSCALE:
        return Wait(WaitFor.LOSS_SCALE)
    if kind is Kind.LR_STEP:
        return Wait(WaitFor.LEARNING_RATE)
    if may_raise(blocker):
        return Wait(WaitFor.MAY_RAISE, str(marker_name(blocker) or blocker.target))
    return Wait(WaitFor.BACKWARD)


def _sentence(plans: list[_Plan], waits: Counter[Wait]) -> str:
    """Return how many parameters are updated early, and why the others are not."""
    moved = sum(plan.moved for plan in plans)
    total = moved + sum(waits.values())
    reasons = [f"{n} {why}" for why, n in waits.most_common()]
    return f"early update {moved} of {total}" + (f" ({'; '.join(reasons)})" if reasons else "")


def _divide_update(plan: _Plan) -> None:
    """Divide an update, and clear each gradient after its part."""
    if not plan.buckets:
        return
    node = plan.node
    params, grads, subject = (marker_argument(node, n) for n in ("params", "grads", "subject"))
    left = dict(enumerate(params))
    for bucket in plan.buckets:
        positions = [move.position for move in bucket]
        own = [move.grad for move in bucket]
        moved = [store for move in bucket for store in move.stores]
        behind = _move_after(bucket[-1].behind, [*moved, *(params[i] for i in positions)])
        part = _insert_part(node, behind, [left.pop(i) for i in positions], own, positions)
        _clear_after(part, bucket, params)
    used = {move.grad for bucket in plan.buckets for move in bucket}
    kept = [grad for grad in grads if grad not in used]
    with node.graph.inserting_before(node):
        arguments = (list(left.values()), kept, subject, list(left), True)
        last = _call(node.graph, OPS.step_part.default, arguments)
    last.meta = {**node.meta, "stepgraph.part_of": node.name}
    node.graph.erase_node(node)


def _move_after(behind: Node, nodes: list[Node]) -> Node:
    """Move nodes up to follow another, in order, with the views they need; return the last."""
    for node in nodes:
        if behind < node:
            for source in node.all_input_nodes:
                behind = _move_after(behind, [source])
            behind.append(node)
            behind = node
    return behind


def _call(graph: Graph, marker: Any, arguments: tuple[Any, ...]) -> Node:
    """Add a call of a marker, in a node named after it."""
    name = marker.overloadpacket.__name__
    return graph.create_node("call_function", marker, arguments, name=name)


def _insert_part(
    node: Node, behind: Node, params: list[Node], grads: list[Node], positions: list[int]
) -> Node:
    subject = marker_argument(node, "subject")
    with node.graph.inserting_after(behind):
        arguments = (params, grads, subject, positions, False)
        part = _call(node.graph, OPS.step_part.default, arguments)
    part.meta = {**node.meta, "stepgraph.part_of": node.name, EARLY: True}
    return part


def _clear_after(part: Node, bucket: list[_Move], params: list[Node]) -> None:
    """Move the clearing of the gradients of a bucket up to follow their use."""
    clearings: dict[Node, list[Node]] = {}
    for move in bucket:
        clearings.setdefault(move.clearing, []).append(params[move.position])
    for clearing, cleared in clearings.items():
        if calls(clearing, ZERO_GRAD):
            part.append(_divided(clearing, cleared))
        else:
            part.append(clearing)
        part.next.meta[EARLY] = True


def _divided(clearing: Node, cleared: list[Node]) -> Node:
    """Remove parameters from a `zero_grad`; return a new one for them alone."""
    everything, subject = (marker_argument(clearing, name) for name in ("params", "subject"))
    slots = set(map(slot_name, cleared))
    left = [param for param in everything if slot_name(param) not in slots]
    with clearing.graph.inserting_before(clearing):
        own = _call(clearing.graph, OPS.zero_grad.default, (cleared, subject))
    own.meta = dict(clearing.meta)
    clearing.args = (left, subject)
    if not left:
        clearing.graph.erase_node(clearing)
    return own

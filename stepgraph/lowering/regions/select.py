"""Select the nodes of a flat step graph to compile with Inductor, in runs.

A run is a sequence of nodes whose order may change except for the computation. Effects that only
change a reference (`.grad = ...`, a flag) or pass on a result move after the run; nodes that do
not depend on the run (sizes, random draws, a learning rate) move before it. So one run usually
contains a forward, its backward and the clipping after it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from stepgraph import torch_private
from stepgraph.effects import Effect
from stepgraph.ir import marker_argument as argument
from stepgraph.ir import node_effect
from stepgraph.ir.memory_access import all_storages, draws_random, is_glue, written_arguments
from stepgraph.lowering.regions.indices import uses

SMALLEST = 4
"""A run with fewer operators stays eager: a call of compiled code costs as much."""

_DEVICES = ("cpu", "cuda")
_HIDDEN_WRITES = ("aten::native_batch_norm",)
"""Operators with writes not in their schema, replaced before Inductor compiles them."""

_ALLOCATIONS = (torch.ops.aten.empty_like.default, torch.ops.aten.empty.memory_format)
_LIKE = {
    torch.ops.aten.rand_like.default,
    torch.ops.aten.randn_like.default,
    torch.ops.aten.randint_like.default,
    torch.ops.aten.randint_like.low_dtype,
}
"""Random operators that read only the metadata of their first argument."""

_LOOK = {
    torch.ops.aten.binary_cross_entropy.default,
    torch.ops.aten._assert_async.default,
    torch.ops.aten._assert_async.msg,
    torch.ops.aten.repeat_interleave.Tensor,
}
"""Operators that raise for some values, while Inductor's code for them does not."""


@dataclass(eq=False)
class Run:
    """A sequence of nodes of a flat graph that becomes one region.

    Attributes:
        nodes: All of its nodes, in program order.
        inside: The nodes that are compiled.
        before: The nodes that move before it: sizes, random draws and the memory they fill.
        after: The nodes that move after it: stores to `.grad`, flags, logs.
    """

    nodes: list[Node] = field(default_factory=list)
    inside: dict[Node, None] = field(default_factory=dict)
    before: dict[Node, None] = field(default_factory=dict)
    after: dict[Node, None] = field(default_factory=dict)

    @property
    def operators(self) -> int:
        """The number of operators that compute."""
        return sum(not is_glue(node) for node in self.inside)


def select(graph: Graph) -> list[Node | Run]:
    """Return the nodes of a flat graph in program order, those to compile in runs."""
    selector = _Selector(graph)
    for node in graph.nodes:
        selector.add(node)
    selector.close()
    return selector.items


def draws(node: Node) -> bool:
    """Return whether `node` draws random numbers; attention without dropout does not."""
    return draws_random(node) and argument(node, "dropout_p") != 0.0


def eager_reason(node: Node) -> str | None:
    """Return why an operator is not compiled, or None."""
    target = node.target
    if node.op != "call_function":
        return "no operator"
    values = [a.meta.get("val") for a in node.all_input_nodes] + [node.meta.get("val")]
    for value in tree_leaves(values):
        if isinstance(value, torch.SymFloat | torch.SymBool):
            return "a number that is known only when the step runs"
        if torch_private.has_unbacked(value):
            return "a size that depends on values"
        if isinstance(value, Tensor) and (reason := _tensor_reason(value)):
            return reason
    effect = node_effect(node)
    if is_glue(node) or (effect is not None and effect.region == "inside"):
        return None
    if not isinstance(target, torch._ops.OpOverload):
        return "a function that is not an operator"
    if target.namespace != "aten":
        return f"an operator of {target.namespace}"
    if draws(node):
        return "random draws that depend on values"
    return _operator_reason(node)


def _operator_reason(node: Node) -> str | None:
    target: Any = node.target
    mutable = any(a.alias_info and a.alias_info.is_write for a in target._schema.arguments)
    if not mutable and written_arguments(node) and target._schema.name not in _HIDDEN_WRITES:
        return "an operator with a write that its schema does not state"
    if torch.Tag.data_dependent_output in target.tags:
        return "a number that depends on values"
    if _checks_values(node):
        return "an operator that checks values"
    if target is torch.ops.aten.mkldnn_rnn_layer.default:
        return "an operator that depends on the grad mode"
    return None


def _checks_values(node: Node) -> bool:
    """Return whether `node` raises for some values for which Inductor's code does not."""
    if node.target is torch.ops.aten.one_hot.default:
        return bool(node.meta["val"].device.type != "cpu")  # on a CPU `indices` checks its classes
    return node.target in _LOOK


def _tensor_reason(value: Tensor) -> str | None:
    if value.layout is not torch.strided or value.is_quantized:
        return "sparse or quantized tensors"
    if value.is_complex():
        return "complex numbers"
    return None if value.device.type in _DEVICES else f"tensors on {value.device.type}"


class _Selector:
    def __init__(self, graph: Graph) -> None:
        self.items: list[Node | Run] = []
        self.run: Run | None = None
        self.written: set[Node] = set()
        self.read_later: set[Node] = set()
        self.computes = False
        self.part: int | None = None
        self.storages = all_storages(graph)

    def add(self, node: Node) -> None:
        """Add the next node in program order to the open run, before or after it, or alone."""
        effect = node_effect(node)
        self._enter(node.meta.get("stepgraph.part"))
        if node.op in ("placeholder", "get_attr"):
            self.items.insert(self._before_run(), node)
        elif draws(node):
            self._draw(node)
        elif self.run is None and (effect is not None or _stays_out(node)):
            self.items.append(node)
        elif effect is not None and effect.region == "waits" and self._may_wait(node, effect):
            idle = not (self.computes or any(map(self._depends, node.all_input_nodes)))
            self._put(self._open().before if idle else self._open().after, node)
            self.read_later |= self._read_by(node, effect)
        elif self._is_before(node, effect) or self._moves_before(node):
            self._put(self._open().before, node)
        elif (effect is None or effect.region == "inside") and eager_reason(node) is None:
            self._compute(node)
        else:
            self._alone(node)

    def _enter(self, part: int | None) -> None:
        """End the run where another part of a split batch begins, so that activations are freed."""
        if part is not None and part != self.part:
            self.close()
            self.part = part

    def close(self) -> None:
        """End the open run; dissolve it if it has too few operators."""
        run, self.run = self.run, None
        self.written, self.read_later, self.computes = set(), set(), False
        if run is not None and run.operators < SMALLEST:
            place = self.items.index(run)
            self.items[place : place + 1] = run.nodes

    def _compute(self, node: Node) -> None:
        written = {root for a in written_arguments(node) for root in self.storages[a]}
        if written & self.read_later:
            self.close()  # an effect moved after the run would read the new value
        indices = {root for use in uses(node) for root in self.storages[use.index]}
        if indices & self.written or any(map(self._depends, indices)):
            self.close()  # an index must be an input of a run, to be checked
        self.written |= written
        self.computes = self.computes or not is_glue(node)
        self._put(self._open().inside, node)

    def _open(self) -> Run:
        if self.run is None:
            self.run = Run()
            self.items.append(self.run)
        return self.run

    def _put(self, where: dict[Node, None], node: Node) -> None:
        where[node] = None
        self._open().nodes.append(node)

    def _before_run(self) -> int:
        return len(self.items) if self.run is None else self.items.index(self.run)

    def _alone(self, node: Node) -> None:
        self.close()
        self.items.append(node)

    def _depends(self, node: Node) -> bool:
        """Return whether `node` is computed by the open run."""
        return self.run is not None and node in self.run.inside

    def _moves_before(self, node: Node) -> bool:
        """Return whether `node` is a size or an item of a value that is computed before the run."""
        if self.run is None or any(map(self._depends, node.all_input_nodes)):
            return False
        return _stays_out(node)

    def _is_before(self, node: Node, effect: Effect | None) -> bool:
        """Return whether an effect does not depend on the run and moves before it."""
        if effect is None or effect.region != "before":
            return False
        needs = any(map(self._depends, node.all_input_nodes))
        return not needs and not self._read_by(node, effect) & self.written

    def _may_wait(self, node: Node, effect: Effect) -> bool:
        """Return whether an effect may move after the run: no node of the run changes its value."""
        return not self._read_by(node, effect) & self.written

    def _read_by(self, node: Node, effect: Effect) -> set[Node]:
        """Return the memories whose values an effect reads."""
        names = effect.positions if effect.values_read is None else effect.values_read
        values = [effect.argument(node, name) for name in names]
        found = (value for value in tree_leaves(values) if isinstance(value, Node))
        return {root for value in found for root in self.storages[value]}

    def _draw(self, node: Node) -> None:
        """Move a random draw before the run, with the memory it fills; else end the run."""
        moving = self._moving(node)
        if moving is None:
            self._alone(node)
            return
        run = self._open()
        for allocation in moving:
            del run.inside[allocation]
            run.before[allocation] = None
        self._put(run.before, node)

    def _moving(self, node: Node) -> list[Node] | None:
        """Return the memory that moves with a draw; None if the draw must keep its position."""
        if self.run is None:
            return None
        moving: list[Node] = []
        for source in node.all_input_nodes:
            if not self._depends(source):
                if written_arguments(node) or self.storages[source] & self.written:
                    return None
            elif source.target in _ALLOCATIONS and has_static_sizes(source):
                if any(self._depends(user) for user in source.users):
                    return None
                moving.append(source)
            elif node.target not in _LIKE or not has_static_sizes(node):
                return None
        return moving


def has_static_sizes(node: Node) -> bool:
    """Return whether size and strides of a tensor node are known now."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return False
    return all(isinstance(n, int) for n in (*value.shape, *value.stride()))


def _stays_out(node: Node) -> bool:
    """Return whether `node` is not part of a run, if it does not depend on it."""
    is_name = node.target in (operator.getitem, torch.ops.aten.detach.default)
    return is_name or isinstance(node.meta.get("val"), int | torch.SymInt)

"""Divide a lowered step into the part recorded as a CUDA graph and the tail run by the host."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from stepgraph.ir import is_update, marker_argument
from stepgraph.lowering.cuda.legality import (
    FIXED,
    gradients,
    leaving,
    origin,
    tail_of,
    written_inputs,
)
from stepgraph.lowering.emit import emit
from stepgraph.lowering.regions.compiled_run import CompiledRun
from stepgraph.lowering.updates.triton import KernelLaunch, KernelUpdate
from stepgraph.runtime import Buffers, Graphed, Plan
from stepgraph.torch_private import graph_module


class RecordedUpdate:
    """An update, or a part of one, in a form that can be recorded: launches only.

    Args:
        update: The update.
        clipped: Whether gradients are multiplied by a factor first.
        grads: For each parameter, by position among the inputs: memory of its gradient.
    """

    def __init__(self, update: KernelUpdate, clipped: bool, grads: dict[int, Tensor]) -> None:
        self._update, self._clipped, self._grads = update, clipped, grads
        self._by_id: dict[int, Tensor] = {}
        self._launch: KernelLaunch | None = None

    def prepare(self, inputs: Sequence[Any]) -> object:
        """Copy to the device what the launches read; None if the kernels do not fit now."""
        if not self._update.tried:
            return None
        ids = [id(inputs[i]) for i in self._grads]
        if ids != list(self._by_id):
            self._by_id = dict(zip(ids, self._grads.values(), strict=True))
        self._launch = self._update.prepared(clipped=self._clipped, grads=self._by_id)
        return None if self._launch is None else self._launch.tables

    def __call__(self) -> None:
        """Update."""
        self.clipped(None)

    def clipped(self, factor: Tensor | None) -> None:
        """Multiply the gradients by `factor`, `[]`, then update."""
        assert self._launch is not None
        self._launch.launch(factor)

    def stepped(self) -> None:
        """Record that the optimizer has stepped, for the check in `scheduler.step()`."""
        self._update.note_step()


def graphed(
    flat: GraphModule,
    subjects: Mapping[int, Any],
    updates: Mapping[int, Any],
    *,
    ordinary: Callable[..., Any],
    buffers: Buffers,
) -> Graphed:
    """Return a program that records and replays a step.

    Args:
        flat: A lowered step for which `why_not_capturable` has no reason. Unchanged.
        subjects: The tracked objects that its markers act on, by number.
        updates: The update of each optimizer, by number.
        ordinary: The program that runs without a CUDA graph.
        buffers: The buffers that all graphs of this compiled step share.
    """
    return _Splitter(flat, subjects, updates, buffers).graphed(ordinary)


class _Splitter:
    def __init__(
        self,
        flat: GraphModule,
        subjects: Mapping[int, Any],
        updates: Mapping[int, Any],
        buffers: Buffers,
    ) -> None:
        self.flat, self.subjects, self.updates, self.buffers = flat, subjects, updates, buffers
        self.inputs: list[Node] = list(flat.graph.find_nodes(op="placeholder"))
        self.positions = {node: i for i, node in enumerate(self.inputs)}
        self.tail = tail_of(flat.graph)
        self.leaving = leaving(flat.graph, self.tail)
        self.gradients = gradients(flat.graph)
        self.memory = self._memory()
        self.recorded: list[RecordedUpdate] = []

    def graphed(self, ordinary: Callable[..., Any]) -> Graphed:
        """Emit both halves and join them."""
        body, tail = self._body(), self._emitted_tail()
        copied = {
            self.positions[node]: self.memory.get(node, _buffer(node.meta["val"]))
            for node in self.inputs
            if node.meta["stepgraph.slot"].role not in FIXED and node.users
        }
        written = {self.positions[node] for node in written_inputs(self.flat.graph)}
        fixed = [i for i, n in enumerate(self.inputs) if i not in copied and n.users]
        plan = Plan(
            body=body,
            tail=tail,
            fixed=tuple(fixed),
            copied=copied,
            written=tuple(i for i in copied if i in written),
            updated=tuple(i for i in fixed if i in written),
            prepare=self._prepare(),
        )
        return Graphed(ordinary, plan, self.buffers)

    def _memory(self) -> dict[Node, Tensor]:
        """Return the memory of every gradient that an update reads."""
        likes: dict[Node, tuple[str, Tensor]] = {}
        for pairs in self.gradients.values():
            for param, grad in pairs or ():
                likes[grad] = (param.meta["stepgraph.slot"].name, grad.meta["val"])
        return dict(zip(likes, self.buffers.gradients(list(likes.values())), strict=True))

    def _body(self) -> Callable[..., Any]:
        graph, attributes = Graph(), dict[str, Tensor]()
        values: dict[Node, Node] = {}
        for node in self.flat.graph.nodes:
            if node in self.tail or node.op == "output":
                continue
            if is_update(node):
                self._move_gradients(node, graph, values, attributes)
                self._record(node, graph, values)
            else:
                values[node] = graph.node_copy(node, values.__getitem__)
        graph.output(tuple(values[node] for node in self.leaving))
        held = [str(node.target) for node in self.flat.graph.find_nodes(op="get_attr")]
        attributes.update({name: operator.attrgetter(name)(self.flat) for name in held})
        return emit(graph_module(attributes, graph), self.subjects).function

    def _move_gradients(
        self,
        update: Node,
        graph: Graph,
        values: dict[Node, Node],
        attributes: dict[str, Tensor],
    ) -> None:
        """Copy the gradients of an update to the memory that it reads; later nodes use the copies.

        One call for all; gradients that are inputs are not copied.
        """
        pairs = self.gradients[update] or ()
        moved = [g for _, g in pairs if g.op != "placeholder" and values[g].op != "get_attr"]
        moved = list(dict.fromkeys(moved))
        if not moved:
            return
        places = []
        for grad in moved:
            name = f"stepgraph_gradient_{len(attributes)}"
            attributes[name] = self.memory[grad]
            places.append(graph.create_node("get_attr", name))
            places[-1].meta["val"] = grad.meta["val"]
        copy = torch.ops.aten._foreach_copy_.default
        graph.call_function(copy, (places, [values[grad] for grad in moved]))
        renamed = dict(zip(moved, places, strict=True))
        for node in list(values):
            if origin(node) in renamed:
                values[node] = renamed[origin(node)]

    def _record(self, node: Node, graph: Graph, values: dict[Node, Node]) -> None:
        """Replace an update by its launches."""
        update = self.updates[marker_argument(node, "subject")]
        if marker_argument(node, "places") is not None:
            places, last = marker_argument(node, "places"), marker_argument(node, "last")
            update = update.part(places, last=last)
        pairs = self.gradients[node] or ()
        grads = {self.positions[param]: self.memory[grad] for param, grad in pairs}
        factor = marker_argument(node, "factor")
        recorded = RecordedUpdate(update, factor is not None, grads)
        self.recorded.append(recorded)
        if factor is not None:
            graph.call_function(_named(recorded.clipped), (values[factor],))
        else:
            graph.call_function(_named(recorded.__call__), ())

    def _emitted_tail(self) -> Callable[..., Any]:
        """Emit the host's part: a function of the inputs, then of the results of the body."""
        graph = Graph()
        values: dict[Node, Node] = {}
        for node in (*self.inputs, *self.leaving):
            values[node] = graph.create_node("placeholder", node.name, name=node.name)
            values[node].meta.update(node.meta)
        for recorded in self.recorded:
            graph.call_function(_named(recorded.stepped), ())

        def value(node: Node) -> Node:
            if node not in values:  # a detached name
                values[node] = graph.node_copy(node, value)
            return values[node]

        for node in self.flat.graph.nodes:
            if node in self.tail or node.op == "output":
                values[node] = graph.node_copy(node, value)
        return emit(graph_module(self.flat, graph), self.subjects).function

    def _prepare(self) -> Callable[[Sequence[Any]], object]:
        nodes = self.flat.graph.nodes
        regions = [node.target for node in nodes if isinstance(node.target, CompiledRun)]
        recorded = list(self.recorded)

        def prepare(inputs: Sequence[Any]) -> object:
            if not all(region.tried for region in regions):
                return None
            tables = [update.prepare(inputs) for update in recorded]
            return None if any(table is None for table in tables) else tuple(tables)

        return prepare


def _buffer(like: Tensor) -> Tensor:
    """Return memory for an input that is copied."""
    return torch.empty_strided(
        tuple(like.shape), like.stride(), dtype=like.dtype, device=like.device
    )


def _named(call: Callable[..., None]) -> Callable[..., None]:
    """Return `call` wrapped in a new function: the emitter identifies constants by identity."""

    def run(*arguments: Any) -> None:
        call(*arguments)

    return run

"""Replace the runs of computation in a flat step graph by calls of compiled regions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from stepgraph.ir.memory_access import all_storages, draws_random, is_glue, written_arguments
from stepgraph.lowering.regions.compiled_run import CompiledRun, Unsupported
from stepgraph.lowering.regions.select import Run, select
from stepgraph.lowering.updates.choose import fused_update
from stepgraph.lowering.updates.cpu import FusedUpdate
from stepgraph.lowering.updates.master_weights import Masters
from stepgraph.lowering.updates.not_fused import NotFused
from stepgraph.torch_private import graph_module

Compile = Callable[[GraphModule, str], CompiledRun]
"""Makes a region from its graph and its name, or raises `Unsupported`."""


@dataclass(frozen=True)
class Lowered:
    """A flat graph to emit, its compiled regions and its fused updates.

    Attributes:
        flat: The graph. Its regions are `call_function` nodes whose target is a `CompiledRun`.
        regions: The regions it calls.
        refused: For every run that stays eager: number of operators, and the reason.
        updates: For optimizers, by number: a fused update, or why there is none.
    """

    flat: GraphModule
    regions: tuple[CompiledRun, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()
    updates: Mapping[int, FusedUpdate | NotFused] = field(default_factory=dict)

    @property
    def fused(self) -> dict[int, FusedUpdate]:
        """The fused updates, by number."""
        return {n: u for n, u in self.updates.items() if isinstance(u, FusedUpdate)}

    def try_again(self) -> tuple[CompiledRun, ...]:
        """Make the next call of every compiled region a trial again; return them."""
        compiled = tuple(r for r in self.regions if r.tried and r.refusal is None)
        for region in compiled:
            region.try_again()
        return compiled


def lower(
    flat: GraphModule,
    compile_region: Compile,
    optimizers: Mapping[int, Any] | None = None,
    masters: Masters | None = None,
) -> Lowered:
    """Return `flat` with every run that `compile_region` accepts as one call.

    Args:
        flat: A flat step graph. Unchanged.
        compile_region: Called with a graph of ATen operators, and of effects that a region allows.
        optimizers: The optimizers that it steps, by number.
        masters: Float32 copies of weights and state for the updates, or None.
    """
    lowerer = _Lowerer(flat, compile_region)
    for item in select(flat.graph):
        lowerer.add(item)
    module = graph_module(flat, lowerer.graph)
    module.meta.update(flat.meta)
    updates = {n: fused_update(owner, masters) for n, owner in (optimizers or {}).items()}
    return Lowered(module, tuple(lowerer.regions), tuple(lowerer.refused), updates)


class _Lowerer:
    def __init__(self, flat: GraphModule, compile_region: Compile) -> None:
        self.flat = flat
        self.compile_region = compile_region
        self.storages = all_storages(flat.graph)
        self.graph = Graph()
        self.values: dict[Node, Node] = {}
        self.regions: list[CompiledRun] = []
        self.refused: list[tuple[int, str]] = []

    def add(self, item: Node | Run) -> None:
        """Copy a node, or replace a run by a region."""
        if isinstance(item, Node):
            self.copy(item)
            return
        try:
            inputs, outputs = _inputs(item), self.outputs(item)
            region = self.region(item, inputs, outputs)
        except Unsupported as error:
            self.refused.append((item.operators, str(error)))
            for node in item.nodes:
                self.copy(node)
            return
        self.regions.append(region)
        for node in item.before:
            self.copy_before(node, item)
        self.call(region, inputs, outputs)
        for node in self.escaping(item):
            self.outside(node)
        for node in item.after:
            self.copy(node)

    def region(self, run: Run, inputs: list[Node], outputs: list[Node]) -> CompiledRun:
        self.check_memory(run, inputs)
        graph = Graph()
        values: dict[Node, Node] = {}
        for node in inputs:
            values[node] = graph.create_node("placeholder", node.name, name=node.name)
            values[node].meta["val"] = self.value(node)
            values[node].meta["stepgraph.guarded"] = self.is_guarded(node, run)
        for node in run.inside:
            values[node] = graph.node_copy(node, values.__getitem__)
        graph.output(tuple(values[node] for node in outputs))
        return self.compile_region(
            GraphModule({}, graph), f"region_{len(self.regions) + len(self.refused)}"
        )

    def is_guarded(self, node: Node, run: Run) -> bool:
        """Return whether an input has a known layout: an input of the step, new memory, a view."""
        made = node in self.values and self.values[node].target is operator.getitem
        source = self.values[node].args[0] if made else None
        of_region = isinstance(source, Node) and isinstance(source.target, CompiledRun)
        drawn = node in run.before and draws_random(node)  # into memory allocated for it
        if of_region or drawn or node.op in ("placeholder", "get_attr"):
            return True
        is_view = node.op == "call_function" and is_glue(node)
        return is_view and all(self.is_guarded(source, run) for source in node.all_input_nodes)

    def value(self, node: Node) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.flat)
        return node.meta.get("val")

    def outputs(self, run: Run) -> list[Node]:
        """Return the nodes whose memory `run` allocates and others use."""
        found: dict[Node, None] = {}
        for node in self.escaping(run):
            for root in self.roots(node, run):
                found[root] = None
        return list(found)

    def escaping(self, run: Run) -> Iterator[Node]:
        """Yield the nodes of `run` that are used outside of it."""
        for node in run.inside:
            if any(user not in run.inside and user not in run.before for user in node.users):
                yield node

    def roots(self, node: Node, run: Run) -> Iterator[Node]:
        """Yield the values that a region must return so that `outside` can rebuild `node`."""
        if node not in run.inside:
            return
        if self.is_own(node):
            if isinstance(node.meta.get("val"), list | tuple):
                raise Unsupported("a tuple that is used outside of the region")
            yield node
            return
        source = self.same_memory(node)
        if source is None:
            raise Unsupported(f"a result that may share memory: {node.target}")
        for argument in source if isinstance(source, tuple) else (source,):
            yield from self.roots(argument, run)

    def is_own(self, node: Node) -> bool:
        return self.storages[node] == {node}

    def same_memory(self, node: Node) -> Node | tuple[Node, ...] | None:
        """Return the value that `node` is equal to, or the value that it is a view of."""
        if written := written_arguments(node):
            return written[0] if len(written) == 1 else None
        first = next(iter(self.storages[node]))
        if node.target is operator.getitem and first.target is operator.getitem:
            source, place = first.args
            if (source, place) == node.args:
                return first
        return tuple(node.all_input_nodes) if is_glue(node) else None

    def outside(self, node: Node) -> Node:
        """Return `node` in the new graph, as a view of a result of a region."""
        if node not in self.values:
            source = self.same_memory(node)
            if isinstance(source, Node):
                self.values[node] = self.outside(source)
            else:
                for argument in node.all_input_nodes:
                    self.outside(argument)
                self.copy(node)
        return self.values[node]

    def check_memory(self, run: Run, inputs: list[Node]) -> None:
        """Refuse to write memory that two inputs of a region share."""
        owners: dict[Node, Node] = {}
        shared = {
            root
            for node in inputs
            for root in self.storages[node]
            if owners.setdefault(root, node) is not node
        }
        written = {r for n in run.inside for a in written_arguments(n) for r in self.storages[a]}
        if shared & written:
            raise Unsupported("writes memory that two of its inputs share")

    def call(self, region: CompiledRun, inputs: list[Node], outputs: list[Node]) -> None:
        call = self.graph.call_function(region, tuple(self.values[node] for node in inputs))
        call.meta["val"] = tuple(node.meta.get("val") for node in outputs)
        for i, node in enumerate(outputs):
            item = self.graph.call_function(operator.getitem, (call, i))
            item.meta.update(node.meta)
            self.values[node] = item

    def copy(self, node: Node) -> None:
        self.values[node] = self.graph.node_copy(node, lambda n: self.values[n])

    def copy_before(self, node: Node, run: Run) -> None:
        """Copy a node before its run, without arguments of which it reads only the size."""
        unknown = [source for source in node.all_input_nodes if source in run.inside]
        if not unknown:
            self.copy(node)
            return
        (source,) = unknown
        like = _empty(self.graph, node if node.target is _EMPTY_LIKE else source)
        self.values[node] = like
        if node.target is not _EMPTY_LIKE:
            self.values[node] = self.graph.node_copy(
                node, lambda n: like if n is source else self.values[n]
            )


_EMPTY_LIKE = torch.ops.aten.empty_like.default


def _empty(graph: Graph, like: Node) -> Node:
    """Return new memory with the size, strides and dtype of a static tensor."""
    value = like.meta["val"]
    node = graph.call_function(
        torch.ops.aten.empty_strided.default,
        (list(value.shape), list(value.stride())),
        {"dtype": value.dtype, "device": value.device},
    )
    node.meta["val"] = value
    return node


def _inputs(run: Run) -> list[Node]:
    used = (source for node in run.inside for source in node.all_input_nodes)
    inputs = list(dict.fromkeys(node for node in used if node not in run.inside))
    if any(isinstance(node.meta.get("val"), list | tuple) for node in inputs):
        raise Unsupported("takes a list of tensors")
    return inputs

"""Whether a program may be recorded as a CUDA graph, and if not, every reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from stepgraph import torch_private
from stepgraph.effects import Effect, NotRecordable
from stepgraph.ir import all_storages, is_update, marker_argument, node_effect, stored_gradients
from stepgraph.ir.memory_access import written_arguments
from stepgraph.ir.signature import Role
from stepgraph.lowering.emit import plain_numbers
from stepgraph.lowering.regions.compiled_run import CompiledRun
from stepgraph.lowering.updates.cpu import FusedUpdate
from stepgraph.lowering.updates.triton import KernelUpdate

FIXED = (Role.PARAM, Role.BUFFER)
"""Roles of inputs whose memory a graph uses directly; others are copied into its buffers."""

_WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_DETACH = torch.ops.aten.detach.default


def why_not_capturable(
    flat: GraphModule, updates: Mapping[int, Any], *, device: str = "cuda"
) -> list[str]:
    """Return every reason why a lowered step cannot be recorded and replayed; none if it can.

    Args:
        flat: The lowered graph: ATen operators, regions and markers. Unchanged.
        updates: For optimizers, by number: the fused update, or why there is none.
        device: The type of device that would record.
    """
    reasons = [
        *_inputs(flat.graph, device),
        *_operators(flat.graph, device),
        *_updates(flat.graph, updates),
        *_order(flat.graph),
        *_results(flat.graph),
    ]
    return list(dict.fromkeys(reasons))


def origin(node: Any) -> Any:
    """Return the node that `node` detaches, through any number of detach calls."""
    while isinstance(node, Node) and node.target is _DETACH:
        node = node.args[0]
    return node


def tail_of(graph: Graph) -> dict[Node, None]:
    """Return the nodes that the host performs after the device's work, in program order."""
    plain = plain_numbers(graph)
    tail: dict[Node, None] = {}
    for node in graph.nodes:
        renames = node.target is _DETACH and origin(node) in tail
        if _in_tail(node_effect(node)) or node in plain or renames:
            tail[node] = None
    return tail


def _in_tail(effect: Effect | None) -> bool:
    """Return whether the host performs an effect after the device's work."""
    return effect is not None and effect.cuda_graph == "tail"


def _sets_numbers(effect: Effect | None) -> bool:
    """Return whether an effect of the tail changes hyper-parameters that an update reads."""
    if effect is None or effect.cuda_graph != "tail":
        return False
    return any(resource.form == "hyper" for resource in effect.writes)


def leaving(graph: Graph, tail: Mapping[Node, None]) -> list[Node]:
    """Return the values that leave the device's work: for the tail and for the caller."""
    used = [s for node in tail for s in node.all_input_nodes]
    used += graph.output_node().all_input_nodes
    origins = (origin(node) for node in used)
    return list(dict.fromkeys(n for n in origins if n not in tail and n.op != "placeholder"))


def gradients(graph: Graph) -> dict[Node, list[tuple[Node, Node]] | None]:
    """Return for every update its parameters and their gradients, as nodes.

    None if the graph does not show which gradient belongs to which parameter.
    """
    slots = {n: n.meta["stepgraph.slot"] for n in graph.nodes if n.op == "placeholder"}
    named = {slot.name: n for n, slot in slots.items() if slot.role is Role.GRAD}
    current: dict[Any, Any] = {
        n: named.get(slot.name) for n, slot in slots.items() if slot.role is Role.PARAM
    }
    found: dict[Node, list[tuple[Node, Node]] | None] = {}
    for node in graph.nodes:
        for param, grad in stored_gradients(node):
            current[origin(param)] = origin(grad)
        if is_update(node):
            params = [origin(param) for param in marker_argument(node, "params")]
            pairs = [(p, current[p]) for p in params if current.get(p) is not None]
            given = [origin(grad) for grad in marker_argument(node, "grads")]
            found[node] = pairs if [grad for _, grad in pairs] == given else None
    return found


def _inputs(graph: Graph, device: str) -> Iterator[str]:
    owners: dict[Node, Node] = {}
    storages = all_storages(graph)
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) or _has_symbols(value):
            yield "sizes vary from call to call"
        elif not isinstance(value, Tensor):
            yield "an input is not a tensor"
        elif value.device.type != device and node.users:
            yield f"it uses tensors on {value.device.type}"
        for root in storages[node]:
            other = owners.setdefault(root, node)
            if other is not node and not (_is_fixed(node) and _is_fixed(other)):
                yield "two of its inputs share memory"


def _operators(graph: Graph, device: str) -> Iterator[str]:
    tail = tail_of(graph)
    for node in graph.nodes:
        effect = node_effect(node)
        if effect is not None and isinstance(effect.cuda_graph, NotRecordable):
            yield effect.cuda_graph.why
        if node in tail or node.op != "call_function" or is_update(node):
            continue
        if any(origin(source) in tail for source in node.all_input_nodes):
            yield "it computes with a number that the host reads in the step"
            continue
        yield from _values(node, device)
        target: Any = node.target
        if any(tag in getattr(target, "tags", ()) for tag in _WAITS):
            yield f"{target._schema.name.removeprefix('aten::')} waits for the device"


def _values(node: Node, device: str) -> Iterator[str]:
    for value in tree_leaves(node.meta.get("val")):
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            yield "sizes vary from call to call"
        elif torch_private.has_unbacked(value):
            yield "a size depends on values"
        elif _has_symbols(value):
            yield "sizes vary from call to call"
        elif isinstance(value, Tensor) and value.device.type != device:
            yield f"it uses tensors on {value.device.type}"


def _updates(graph: Graph, updates: Mapping[int, Any]) -> Iterator[str]:
    for node, pairs in gradients(graph).items():
        number = marker_argument(node, "subject")
        label = node.meta.get("stepgraph.label", "an optimizer")
        update = updates.get(number, "it runs its own step()")
        if not isinstance(update, KernelUpdate):
            why = "no Triton kernel updates it" if isinstance(update, FusedUpdate) else str(update)
            yield f"{label} runs its own code: {why}"
        elif not update.recordable:
            yield f"{label}: its kernels are not recorded yet"
        if pairs is None:
            yield f"{label}: its gradients are assigned to parameters only when the step runs"


def _order(graph: Graph) -> Iterator[str]:
    """Yield effects of the tail that would run too late."""
    changed = False
    for node in graph.nodes:
        effect = node_effect(node)
        changed = changed or _sets_numbers(effect)
        if changed and is_update(node):
            yield "a schedule steps before an update"


def _results(graph: Graph) -> Iterator[str]:
    storages = all_storages(graph)
    tail = tail_of(graph)
    owners: dict[Node, Node] = {}
    for node in leaving(graph, tail):
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            yield "it returns a value that is not a tensor"
            continue
        for root in storages[node]:
            if root.op == "placeholder":
                yield "it returns a view of an input"
            elif owners.setdefault(root, node) is not node:
                yield "two of its results share memory"
    yield from _moved_gradients(graph, storages)


def _moved_gradients(graph: Graph, storages: Mapping[Node, frozenset[Node]]) -> Iterator[str]:
    """Yield views of gradients that are used after an update, which reads a copy of them."""
    moved: dict[Node, Node] = {}
    for node in graph.nodes:
        for source in map(origin, node.all_input_nodes):
            for root in storages[source]:
                if moved.get(root, source) is not source:
                    yield "a view of a gradient is used after an update"
        if is_update(node):
            grads: Sequence[Any] = marker_argument(node, "grads")
            for grad in map(origin, grads):
                if grad.op != "placeholder":
                    moved.update(dict.fromkeys(storages[grad], grad))


def _has_symbols(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    return not all(isinstance(n, int) for n in (*value.shape, *value.stride()))


def _is_fixed(node: Node) -> bool:
    return node.meta["stepgraph.slot"].role in FIXED


def written_inputs(graph: Graph) -> set[Node]:
    """Return the placeholders whose memory some node writes."""
    storages = all_storages(graph)
    written = set[Node]()
    for node in graph.nodes:
        target = node.target
        region = target.written if isinstance(target, CompiledRun) else None
        arguments = written_arguments(node) if region is None else [node.args[i] for i in region]
        written |= {root for argument in arguments for root in storages[argument]}
    return {node for node in graph.find_nodes(op="placeholder") if storages[node] & written}

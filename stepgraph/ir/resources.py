"""The resources of a step: names for everything whose order of reads and writes matters.

A resource is a slot (`param:G.0.weight`, `grad:G.0.weight`, `batch:x`), an intermediate memory
that a later node writes (`value:relu_1`), torch's random state (`rng`), or the target of an
effect: the state of an optimizer (`state:Adam(d_opt)`), its hyper-parameters (`hyper:...`), a loss
scale (`scale:...`), its finite check (`found_inf:...`), the `requires_grad` flag of a tensor
(`flag:...`), values that are appended to the user's lists (`log`).

One memory may have several names: a slot may share memory with another, and a gradient that is
stored in the `.grad` of two parameters belongs to both. Names are only added, never removed, so
any two accesses to one memory that do not commute have a name in common.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node

from stepgraph.effects import Effect, Resource
from stepgraph.ir.effect_nodes import argument, node_effect, stored_gradients
from stepgraph.ir.memory_access import (
    draws_random,
    read_arguments,
    storages_of,
    written_arguments,
)
from stepgraph.ir.schema import schema_of
from stepgraph.ir.signature import Slot

OPAQUE = "opaque"
"""The resource of a barrier: every typed node reads it, an opaque step writes it."""

MADE_IN_STEP = ("param:", "buffer:", "grad:", "batch:", "value:")
"""Prefixes of the resources that a placeholder or a node of the step must provide.

All others exist before the step begins: optimizer state, hyper-parameters, flags, logs.
"""

_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Access:
    """The resources that a node reads and writes."""

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()

    def __or__(self, other: Access) -> Access:
        return Access(self.reads | other.reads, self.writes | other.writes)


def accesses(
    graph: Graph,
    storages: Mapping[Node, frozenset[Node]],
    units: Mapping[Node, Hashable] | None = None,
) -> dict[Node, Access]:
    """Return what every node of a flat graph reads and writes.

    Args:
        graph: A flat graph, in program order.
        storages: The storages of every node, from `all_storages`.
        units: The unit of each node; None if every node is a unit. Accesses to an intermediate
            memory inside the unit that allocated it are invisible outside and get no name.

    Returns:
        The accesses, by node. The output reads everything that was written: the user can read it
        when the step returns.
    """
    naming = _Naming(graph, storages, units or {node: node for node in graph.nodes})
    found = {node: naming.access(node) for node in graph.nodes}
    written = frozenset().union(*(access.writes for access in found.values()))
    for node in graph.nodes:
        if node.op == "output":
            found[node] |= Access(reads=written)
    return found


class _Naming:
    """The names of every memory, while a walk in program order stores gradients in slots."""

    def __init__(
        self,
        graph: Graph,
        storages: Mapping[Node, frozenset[Node]],
        units: Mapping[Node, Hashable],
    ) -> None:
        self.storages = storages
        self.names: dict[Node, set[str]] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                for root in self.storages[node]:
                    self.names.setdefault(root, set()).add(_slot(node).resource)
        for root in self._shared_intermediates(graph, units):
            self.names.setdefault(root, set()).add(f"value:{root.name}")

    def access(self, node: Node) -> Access:
        """Return what `node` reads and writes; call this once for each node, in program order."""
        reads = self._of(_read(node))
        schema = schema_of(node.target)
        if schema is not None and schema.only_computes and node not in self.names:
            return Access(reads)
        writes = self._of(written_arguments(node))
        if node.op != "placeholder" and node in self.names and node in self.storages[node]:
            writes |= {name for name in self.names[node] if name.startswith("value:")}
        if draws_random(node):
            reads, writes = reads | {"rng"}, writes | {"rng"}
        effect = node_effect(node)
        if effect is None:
            return Access(reads, writes)
        self._store_gradient(node)
        return Access(reads, writes) | _of_effect(node, effect)

    def _of(self, arguments: tuple[Node, ...]) -> frozenset[str]:
        roots = [root for node in arguments for root in self.storages[node] if root in self.names]
        return frozenset().union(*map(self.names.__getitem__, roots)) if roots else _NOTHING

    def _store_gradient(self, node: Node) -> None:
        for param, grad in stored_gradients(node):
            for root in self.storages[grad] if grad is not None else ():
                self.names.setdefault(root, set()).add(f"grad:{slot_name(param)}")

    def _shared_intermediates(self, graph: Graph, units: Mapping[Node, Hashable]) -> list[Node]:
        """Return the memories, slots apart, that a unit writes after another allocated them.

        A memory that no other node accesses before it becomes a gradient has that gradient's name.
        """
        written = self._written_elsewhere(graph, units)
        if not written:
            return []
        stored: set[Node] = set()
        early: set[Node] = set()
        for node in graph.nodes:
            for touched in (*_read(node), *written_arguments(node)):
                for root in self.storages[touched]:
                    if root in written and units[root] != units[node]:
                        early |= {root} - stored
            for _, grad in stored_gradients(node):
                stored |= self.storages[grad] if grad is not None else frozenset()
        return [root for root in written if root in early]

    def _written_elsewhere(self, graph: Graph, units: Mapping[Node, Hashable]) -> dict[Node, None]:
        """Return the memories, slots apart, that a unit writes after another allocated them."""
        return {
            root: None
            for node in graph.nodes
            for touched in written_arguments(node)
            for root in self.storages[touched]
            if root.op != "placeholder" and units[root] != units[node]
        }


def slot_name(node: Node) -> str:
    """Return the name of the slot that `node` is, or is a view of."""
    if node.op == "placeholder":
        return _slot(node).name
    root = min(storages_of(node), key=lambda root: root.name)
    return _slot(root).name if root.op == "placeholder" else root.name


def _slot(placeholder: Node) -> Slot:
    slot = placeholder.meta["stepgraph.slot"]
    assert isinstance(slot, Slot)
    return slot


def _read(node: Node) -> tuple[Node, ...]:
    """Return the arguments whose values `node` reads."""
    effect = node_effect(node)
    if effect is None or effect.values_read is None:
        return read_arguments(node)
    return tuple(effect.argument(node, name) for name in effect.values_read)


def _of_effect(node: Node, effect: Effect) -> Access:
    """Return what an effect reads and writes apart from the tensors that its schema names."""
    reads = [_named(node, resource) for resource in effect.reads]
    writes = [_named(node, resource) for resource in effect.writes]
    total = Access(_NOTHING.union(*reads), _NOTHING.union(*writes))
    for resource in effect.writes:
        if resource.form == "update":
            total |= _of_update(node, _update_label(node, effect))
    return total


def _named(node: Node, resource: Resource) -> frozenset[str]:
    """Return the names of a resource of an effect for one node."""
    if resource.form == "update":
        return _NOTHING
    if resource.argument is None:
        return frozenset([resource.name])
    if resource.form == "slot":
        value = argument(node, resource.argument)
        tensors = value if isinstance(value, list | tuple) else [value]
        return frozenset(f"{resource.name}:{slot_name(tensor)}" for tensor in tensors)
    label = _label(node)
    if resource.form == "hyper":
        names = _hyper(node)
        first = resource.argument == "subject"
        return frozenset([names[0] if first else names[-1]])
    return frozenset([f"{resource.name}:{label}"])


def _of_update(node: Node, label: str) -> Access:
    """Return the access of an update: it reads the slots of all its parameters.

    The state of an opaque update is one resource; of any other, each parameter has its own.
    """
    opaque = node.meta.get("stepgraph.opaque", True)
    names = [slot_name(param) for param in argument(node, "params")]
    state = {f"state:{label}", OPAQUE} if opaque else {f"state:{label}[{name}]" for name in names}
    gradients = frozenset(f"grad:{name}" for name in names)
    return Access(frozenset(_hyper(node)) | gradients | state, frozenset(state))


def updates(node: Node) -> dict[str, Access] | None:
    """Return the accesses of an update to each of its parameters, by slot.

    None for an opaque update, for one that may be skipped, and for a node that is no update.

    So an update has the same accesses whether it runs at once or in parts.
    """
    effect = node_effect(node)
    if effect is None or effect.update != "always" or node.meta.get("stepgraph.opaque", True):
        return None
    label = _label(node)
    hyper = frozenset(_hyper(node))
    found = {}
    for name in map(slot_name, argument(node, "params")):
        written = frozenset({f"param:{name}", f"state:{label}[{name}]"})
        found[name] = Access(hyper | written | {f"grad:{name}"}, written)
    return found


def _label(node: Node) -> str:
    """Return the display name of the tracked object that an effect acts on."""
    return str(node.meta.get("stepgraph.label", f"subject {argument(node, 'subject')}"))


def _update_label(node: Node, effect: Effect) -> str:
    """Return the display name of the optimizer of an update."""
    if effect.optimizer_argument == "subject":
        return _label(node)
    return _hyper(node)[-1].removeprefix("hyper:")


def _hyper(node: Node) -> list[str]:
    """Return the hyper-parameter resources of each tracked object that an effect names."""
    names = node.meta.get("stepgraph.hyper") or [_label(node)]
    return [f"hyper:{name.removeprefix('hyper:')}" for name in names]

"""Sections of a program: its nodes by typed node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch.fx import Graph, GraphModule, Node

from stepgraph.analysis import launches
from stepgraph.ir import Kind, marker_kind, marker_name, node_effect
from stepgraph.ir.memory_access import is_glue
from stepgraph.lowering.regions.compiled_run import CompiledRun
from stepgraph.torch_private import graph_module

_JOINED_KINDS = (Kind.ACCUMULATE, Kind.TOGGLE)
"""Kinds of effects whose consecutive nodes form one section."""


@dataclass(frozen=True, eq=False)
class Section:
    """Consecutive nodes of a flat graph that belong to one typed node, or to a run of small ones.

    Attributes:
        name: The name of the typed node; a run of small ones is named by its kind and a number.
        kind: Its kind; None for code that was compiled across typed nodes.
        at: The user's file and line, if known.
        label: The object it acts on, for example `Adam(d_opt)`, or empty.
        nodes: The nodes of the flat graph; views and sizes belong to the section before them.
    """

    name: str
    kind: Kind | None
    at: str | None
    label: str = ""
    nodes: list[Node] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Its title in a profiler trace: its name, and the object it acts on."""
        return f"{self.name} {self.label}".rstrip()


def sections(flat: GraphModule) -> list[Section]:
    """Return the sections of a flat graph in program order."""
    found: list[Section] = []
    latest: object = None
    runs = Counter[Kind]()
    for node, key in _keys(flat.graph).items():
        if key is not None and key != latest:
            latest = key
            found.append(_section_of(node))
            if isinstance(key, Kind):
                found[-1] = replace(found[-1], name=f"{key.value}_{runs[key]}")
                runs[key] += 1
        if found:
            found[-1].nodes.append(node)
            if found[-1].at is None:  # nodes that split a batch have no line
                found[-1] = replace(found[-1], at=node.meta.get("stepgraph.at"))
    return found


def operator_sections(flat: GraphModule) -> list[Section]:
    """Return a section for every node of a flat graph that computes or has an effect.

    It is named after the operator or effect: `aten.addmm`, `step Adam(d_opt)`.
    """
    found: list[Section] = []
    for node in flat.graph.nodes:
        if node.op != "call_function":
            continue
        if not is_glue(node):
            name, label = _operator_name(node), node.meta.get("stepgraph.label", "")
            found.append(Section(name, _kind(node), node.meta.get("stepgraph.at"), label))
        if found:
            found[-1].nodes.append(node)
    return found


def launched(flat: GraphModule) -> int:
    """Return the number of calls in a flat graph that compute something; a region is one call."""
    return sum(isinstance(node.target, CompiledRun) or launches(node) for node in flat.graph.nodes)


def with_marks(
    flat: GraphModule, mark: Callable[[int], None], cut: Sequence[Section]
) -> GraphModule:
    """Return a copy of a flat graph that calls `mark(i)` before section i, and at the end.

    The copies of nodes keep their metadata; nothing else is added or moved.

    Args:
        flat: The graph.
        mark: Called when the copy runs.
        cut: Its sections, from `sections` or `operator_sections`.
    """
    begins = {section.nodes[0]: i for i, section in enumerate(cut)}
    graph, copies = Graph(), dict[Node, Node]()
    for node in flat.graph.nodes:
        index = len(begins) if node.op == "output" else begins.get(node)
        if index is not None:
            graph.call_function(mark, (index,))
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph_module(flat, graph)


def _kind(node: Node) -> Kind | None:
    kind = node.meta.get("stepgraph.kind")
    return marker_kind(node) or (None if kind is None else Kind(kind))


def _operator_name(node: Node) -> str:
    if isinstance(node.target, CompiledRun):
        return node.target.name
    name = marker_name(node)
    if name is not None:
        return name
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet or getattr(node.target, "__name__", node.target))


def _keys(graph: Graph) -> dict[Node, object]:
    """Return a key that is equal for the nodes of a section; None for glue between sections."""
    computing = [n for n in graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    keys: dict[Node, object] = {}
    following: object = None
    for node in reversed(computing):
        key = _key(node)
        if not is_glue(node):
            following = key
        keys[node] = key if key == following else None
    return dict(reversed(keys.items()))


def _key(node: Node) -> object:
    kind = marker_kind(node)
    if kind in _JOINED_KINDS or _sets_one_gradient(node):
        return kind  # it acts on a single slot
    return node.target if isinstance(node.target, CompiledRun) else node.meta.get("stepgraph.node")


def _sets_one_gradient(node: Node) -> bool:
    effect = node_effect(node)
    return effect is not None and effect.stores is not None and "param" in effect.positions


def _section_of(node: Node) -> Section:
    if isinstance(node.target, CompiledRun):
        inner = (n.meta.get("stepgraph.at") for n in node.target.graph_module.graph.nodes)
        return Section(node.target.name, None, next(filter(None, inner), None))
    return Section(
        name=node.meta.get("stepgraph.node", node.name),
        kind=_kind(node),
        at=node.meta.get("stepgraph.at"),
        label=node.meta.get("stepgraph.label", ""),
    )

"""A step graph as Graphviz text."""

from __future__ import annotations

from torch.fx import Node

from stepgraph.effects import Kind
from stepgraph.ir.views.protocol import ReadableStep

_EDGES = {
    "data": 'color="#333333"',
    "anti": 'color="#cc3333", style=dashed',
    "output": 'color="#3366cc", style=dotted',
}


def to_dot(step: ReadableStep) -> str:
    """Return the typed nodes of `step` and their dependencies as Graphviz text.

    Nodes are coloured by kind. Data edges are solid, anti edges red and dashed, output edges blue
    and dotted, labelled with the resource concerned. Edges through glue are drawn from the typed
    node that computes the value.
    """
    lines = [
        "digraph step {",
        "  rankdir=TB;",
        '  node [shape=box, style=filled, fontname="sans"];',
    ]
    for node in step.nodes:
        if (kind := step.kind(node)) is not None:
            color = _fill(kind)
            label = _quoted(f"{kind.value}\n{node.meta.get('stepgraph.label', node.name)}")
            lines.append(f'  {_quoted(node.name)} [label={label}, fillcolor="{color}"];')
    return "\n".join([*lines, *_edges(step), "}"])


def _edges(step: ReadableStep) -> list[str]:
    origins = _origins(step)
    lines: dict[str, None] = {}
    for source, target, edge in step.dependencies().edges(data=True):
        if step.kind(target) is None:
            continue
        label = f", label={_quoted(edge['resource'])}" if edge["resource"] else ""
        for origin in origins[source]:
            ends = f"{_quoted(origin.name)} -> {_quoted(target.name)}"
            lines[f"  {ends} [{_EDGES[edge['kind']]}{label}];"] = None
    return list(lines)


def _origins(step: ReadableStep) -> dict[Node, tuple[Node, ...]]:
    """Return the typed nodes that compute the value of each node, through glue."""
    found: dict[Node, tuple[Node, ...]] = {}
    for node in step.nodes:
        if step.kind(node) is not None:
            found[node] = (node,)
        else:
            through = (origin for source in node.all_input_nodes for origin in found[source])
            found[node] = tuple(dict.fromkeys(through))
    return found


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _fill(kind: Kind) -> str:
    """Return a light tint of the colour of a kind, as a background for black text."""
    parts = (int(kind.colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{255 - (255 - part) * 3 // 10:02x}" for part in parts)

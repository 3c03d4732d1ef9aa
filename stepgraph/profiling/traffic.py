"""Bytes read and written by each node of a flat graph, optimizer state and regions included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Graph, Node

from stepgraph.analysis import bytes_of, size_of, sizes_of, stealable
from stepgraph.capture import TrackedObject
from stepgraph.ir import all_storages, is_update, marker_argument
from stepgraph.lowering import CompiledRun


def bytes_moved(graph: Graph, subjects: Mapping[int, TrackedObject]) -> dict[Node, int | None]:
    """Return the bytes that each node reads and writes; see `analysis.bytes_of`.

    A compiled region counts with the bytes of its inputs and outputs.

    Args:
        graph: A flat graph whose nodes carry fake tensors in `meta["val"]`.
        subjects: The objects behind its markers, by number; an update also reads and writes the
            state of its optimizer.

    Returns:
        Bytes by node; None if not known.
    """
    storages = all_storages(graph)
    stolen = stealable(list(graph.nodes), storages)
    found: dict[Node, int | None] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node in stolen:
            found[node] = 0  # the value becomes the gradient without a copy
        elif isinstance(node.target, CompiledRun):
            found[node] = sizes_of(node.all_input_nodes) + size_of(node.meta.get("val"))
        else:
            found[node] = bytes_of(node, storages)
        if is_update(node):
            found[node] = (found[node] or 0) + 2 * _state_of(node, subjects)
    return found


def _state_of(node: Node, subjects: Mapping[int, TrackedObject]) -> int:
    """Return the bytes of the state of the parameters that `node` updates."""
    subject: Any = subjects[marker_argument(node, "subject")]
    state = getattr(subject.value, "state", {})
    places = marker_argument(node, "places")  # None for a whole step
    chosen = state if places is None else [subject.parameters[place] for place in places]
    return sum(size_of(list(state.get(parameter, {}).values())) for parameter in chosen)

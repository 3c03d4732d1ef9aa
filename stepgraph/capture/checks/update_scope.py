"""Which updates read and write only their parameters, gradients and state: no barriers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from stepgraph.capture.objects import TrackedObject, TrackedOptimizer
from stepgraph.ir import node_effect


def mark_transparent(
    flat: GraphModule, objects: Mapping[int, TrackedObject], values: Iterable[Any]
) -> None:
    """Mark in the metadata the updates that are provably no barriers.

    An optimizer that is not torch's own may read any tensor. The step may read the state of an
    optimizer if one of its inputs shares memory with a tensor of that state.

    Args:
        flat: A captured step.
        objects: The tracked objects, by number.
        values: The inputs of the step.
    """
    inputs = set(_memories(values))
    sure: dict[int, bool] = {}
    for node in flat.graph.nodes:
        effect = node_effect(node)
        if effect is None or effect.update is None:
            continue
        tracked = objects[effect.argument(node, effect.optimizer_argument)]
        assert isinstance(tracked, TrackedOptimizer)
        if tracked.number not in sure:
            state = tree_leaves([dict(held) for held in tracked.value.state.values()])
            alone = inputs.isdisjoint(_memories(state))
            sure[tracked.number] = alone and tracked.is_transparent()
        node.meta["stepgraph.opaque"] = not sure[tracked.number]
        node.meta["stepgraph.divisible"] = sure[tracked.number] and _has_state_of_all(tracked)


def _has_state_of_all(tracked: TrackedOptimizer) -> bool:
    """Return whether an update adds no key to `state`: the order of its keys is visible."""
    state = tracked.value.state
    return not state or all(parameter in state for parameter in tracked.parameters)


def _memories(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, Tensor) and value.numel():
            yield value.untyped_storage().data_ptr()

"""Which updates touch nothing but their parameters, gradients and state: no barriers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from stepgraph.capture.objects.registry import OptimizerSubject, Subject
from stepgraph.ir import marker_argument, marker_name


def mark_transparent(
    flat: GraphModule, subjects: Mapping[int, Subject], values: Iterable[Any]
) -> None:
    """Say in the metadata of updates that they are no barriers, where that is sure.

    An optimizer that is not torch's own may look at anything. The state of any optimizer may be
    looked at by the step, when the user holds one of its tensors.

    Args:
        flat: A captured step.
        subjects: The objects behind its markers, by number.
        values: The inputs of the step.
    """
    inputs = set(_memories(values))
    sure: dict[int, bool] = {}
    for node in flat.graph.nodes:
        if marker_name(node) not in ("step", "scaled_step"):
            continue
        is_scaled = marker_name(node) == "scaled_step"
        subject = subjects[marker_argument(node, "optimizer" if is_scaled else "subject")]
        assert isinstance(subject, OptimizerSubject)
        if subject.number not in sure:
            state = tree_leaves([dict(held) for held in subject.value.state.values()])
            alone = inputs.isdisjoint(_memories(state))
            sure[subject.number] = alone and subject.is_transparent()
        node.meta["stepgraph.opaque"] = not sure[subject.number]
        node.meta["stepgraph.divisible"] = sure[subject.number] and _knows_its_state(subject)


def _knows_its_state(subject: OptimizerSubject) -> bool:
    """Return whether an update adds no entry to `state`, whose order the user can see."""
    state = subject.value.state
    return not state or all(parameter in state for parameter in subject.parameters)


def _memories(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, Tensor) and value.numel():
            yield value.untyped_storage().data_ptr()

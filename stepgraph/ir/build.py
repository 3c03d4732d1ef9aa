"""Flat graphs from a few lines of Python, for tests and experiments.

Example:
    >>> import torch
    >>> from stepgraph.ir import Kind, partition
    >>> from stepgraph.ir.build import flat_graph, part, step
    >>> def sgd(x, w):
    ...     with part(Kind.FORWARD):
    ...         loss = (x @ w).sum()
    ...     with part(Kind.BACKWARD):
    ...         (gradient,) = torch.autograd.grad(loss, [w])
    ...     step([w], [store(w, gradient)])
    >>> inputs = {"batch:x": torch.ones(2, 3), "param:w": torch.ones(3, 3, requires_grad=True)}
    >>> [kind.value for kind in partition(flat_graph(sgd, inputs)).count()]
    ['forward', 'backward', 'accumulate', 'step']
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from stepgraph.effects import OPS, Kind
from stepgraph.ir.effect_nodes import argument, marker_name, node_effect
from stepgraph.ir.signature import Role, Slot


def flat_graph(
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    labels: Mapping[int, str] | None = None,
) -> GraphModule:
    """Trace `function` into a flat graph of the same form as a capture's.

    Args:
        function: Called with the values of `inputs` by position; marks its parts with `part` and
            its effects with the functions of this module, or with any marker.
        inputs: The inputs by slot: `"param:w"`, `"grad:w"`, `"batch:x"`, ... They are not changed.
        labels: Display names of the tracked objects, by number.

    Returns:
        A graph whose placeholders have slots and whose markers have labels.
    """

    def run(*values: Any) -> Any:
        returned = function(*values)
        if returned is None:
            return ()
        several = isinstance(returned, list | tuple)
        return tuple(v.detach() for v in (returned if several else [returned]))

    with torch.enable_grad():
        flat = make_fx(run, tracing_mode="fake")(*inputs.values())
    placeholders = [node for node in flat.graph.nodes if node.op == "placeholder"]
    for node, resource in zip(placeholders, inputs, strict=True):
        role, _, name = resource.partition(":")
        node.meta["stepgraph.slot"] = Slot(Role(role), name)
    for node in flat.graph.nodes:
        if marker_name(node) and (subject := argument(node, "subject")) is not None:
            node.meta["stepgraph.label"] = (labels or {}).get(subject, f"subject {subject}")
    return flat


@contextmanager
def part(kind: Kind, phase: int = 0) -> Iterator[None]:
    """Scope that sets the kind and phase of the operators traced in it.

    Args:
        kind: Their kind.
        phase: The number of the backward that they belong to or precede.
    """
    graph = _graph()
    first = graph._root.prev
    yield
    node = graph._root.prev
    while node is not first:
        node.meta["stepgraph.kind"] = kind
        node.meta["stepgraph.phase"] = phase
        node = node.prev


def store(param: Tensor, value: Tensor) -> Tensor:
    """Store a gradient in an empty `.grad`; return the stored tensor."""
    grad: Tensor = OPS.first_grad.default(param.detach(), value.detach())
    OPS.set_grad.default(param.detach(), grad)
    return grad


def add(grad: Tensor, value: Tensor) -> None:
    """Add a gradient to a `.grad` that exists."""
    OPS.add_grad_.default(grad, value.detach())


def clear(params: Sequence[Tensor], subject: int = 0) -> None:
    """Set the `.grad` of all parameters of an optimizer to None."""
    OPS.zero_grad.default([p.detach() for p in params], subject)


def step(params: Sequence[Tensor], grads: Sequence[Tensor], subject: int = 0) -> None:
    """Step an optimizer."""
    OPS.step.default([p.detach() for p in params], list(grads), subject)


def set_lr(value: Tensor, subject: int = 0) -> None:
    """Set the learning rate of an optimizer."""
    OPS.set_hyper.default(value.detach(), subject, 0, "lr")


def lr(subject: int = 0) -> Tensor:
    """Return the learning rate of an optimizer at this point of the step."""
    value: Tensor = OPS.hyper.default(subject, 0, "lr")
    return value


def log(value: Tensor, subject: int = 1) -> None:
    """Append a value to a list of the user's."""
    OPS.log.default(value.detach(), subject, False)


def transparent(flat: GraphModule) -> GraphModule:
    """Declare that every update of `flat` accesses only the arguments of its marker: no barrier."""
    for node in flat.graph.nodes:
        effect = node_effect(node)
        if effect is not None and effect.update is not None:
            node.meta["stepgraph.opaque"] = False
            node.meta["stepgraph.divisible"] = True
    return flat


def _graph() -> Any:
    mode = get_proxy_mode()
    if mode is None:
        raise RuntimeError("part() works inside a function that flat_graph() traces")
    return mode.tracer.graph


def nodes_of(flat: GraphModule, name: str) -> list[Node]:
    """Return the calls of the marker or ATen operator called `name`, in program order."""
    names = (
        getattr(getattr(node.target, "_schema", None), "name", "") for node in flat.graph.nodes
    )
    pairs = zip(flat.graph.nodes, names, strict=True)
    return [node for node, full in pairs if full.partition("::")[2] == name]

"""A step graph as text, in the terms of a training step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.effects import Effect, Kind, Phrase
from stepgraph.ir.effect_nodes import node_effect
from stepgraph.ir.resources import OPAQUE, slot_name
from stepgraph.ir.signature import Role
from stepgraph.ir.views.protocol import ReadableStep


def describe(step: ReadableStep) -> str:
    """Return a header and one line for each typed node.

    Example::

        step graph: 5 nodes, 31 ATen ops
          param 4 (1.2 KiB), batch 1 (256 B)
          0  forward     -> loss  [12 ops]  reads D.0.weight, ... (4 params), x     train.py:12
          1  backward    d loss / d (D.0.weight, ...)  [19 ops]                     train.py:13
          2  accumulate  D.0.weight.grad = ..., D.0.bias.grad = ...                 train.py:13
          6  step        Adam(d_opt) [opaque]: updates 4 params                     train.py:14
          7  zero_grad   Adam(d_opt): 4 grads = None                                train.py:15
    """
    typed = [node for node in step.nodes if step.kind(node) is not None]
    rows = [
        (str(typed.index(line.nodes[0])), line.kind.value, line.text, _line(line.nodes[0]))
        for line in lines(step)
    ]
    ops = sum(_ops(step, node) for node in typed)
    head = f"step graph: {len(typed)} nodes, {ops} ATen ops"
    return "\n".join([head, *_inputs(step), *_aligned(rows)])


@dataclass(frozen=True)
class Line:
    """The text of a typed node, or of a run of small ones.

    Attributes:
        kind: The kind of all of them.
        nodes: The top-level nodes, at least one.
        text: A description of them.
    """

    kind: Kind
    nodes: tuple[Node, ...]
    text: str


def lines(step: ReadableStep) -> list[Line]:
    """Return the lines of `describe`, in program order."""
    typed = [node for node in step.nodes if step.kind(node) is not None]
    return [
        Line(kind, tuple(run), _sentence(step, kind, run)) for kind, run in _folded(step, typed)
    ]


def _folded(step: ReadableStep, typed: list[Node]) -> Iterator[tuple[Kind, list[Node]]]:
    for (kind, folds), run in groupby(typed, lambda node: (step.kind(node), _folds(node))):
        assert kind is not None
        if folds:
            yield kind, list(run)
        else:
            yield from ((kind, [node]) for node in run)


def _folds(node: Node) -> bool:
    """Return whether a node shares a line with its neighbours: an effect on one slot."""
    effect = node_effect(node)
    if effect is None or effect.says is None:
        return False
    return not isinstance(effect.says(_Words(node, effect)), str)


def _inputs(step: ReadableStep) -> Iterator[str]:
    parts = []
    inputs = [node for node in step.nodes if node.op == "placeholder"]
    for role in Role:
        values = [n.meta.get("val") for n in inputs if step.slot(n).role is role]
        if values:
            n_bytes = sum(_bytes(value) for value in values)
            size = f" ({readable(n_bytes)})" if n_bytes else ""
            parts.append(f"{role.value} {len(values)}{size}")
    if parts:
        yield "  inputs: " + ", ".join(parts)


def _sentence(step: ReadableStep, kind: Kind, run: list[Node]) -> str:
    """Return the description of the nodes of one line."""
    node = run[0]
    if step.region(node) is not None:
        return _region(step, kind, node)
    return _of_effects(step, run)


def _of_effects(step: ReadableStep, run: list[Node]) -> str:
    """Return the description of effects that share a line."""
    phrases: list[Phrase] = []
    for node in run:
        effect = node_effect(node)
        if effect is None or effect.says is None:
            return _accesses(step, node)
        said = effect.says(_Words(node, effect))
        if isinstance(said, str):
            return said
        phrases += [said] if said is not None else []
    if not phrases:
        return ""
    texts = _enumerate((phrase.text for phrase in phrases), limit=4)
    return f"{phrases[0].before}{texts}{phrases[0].after}"


def _accesses(step: ReadableStep, node: Node) -> str:
    reads, writes = _resources(step.reads(node)), _resources(step.writes(node))
    return f"{node.name}: {reads or 'nothing'} -> {writes or 'nothing'}"


class _Words:
    """What an effect may use to describe its node; see `stepgraph.effects.Words`."""

    def __init__(self, node: Node, effect: Effect) -> None:
        self._node, self._effect = node, effect
        self.label = str(node.meta.get("stepgraph.label", ""))
        self.last_label = str((node.meta.get("stepgraph.hyper") or [""])[-1])
        self.barrier = " [opaque]" if OPAQUE in node.meta.get("stepgraph.writes", ()) else ""

    def argument(self, name: str) -> Any:
        return self._effect.argument(self._node, name)

    def value(self, name: str) -> str:
        return _name(self.argument(name))

    def slot(self, name: str) -> str:
        return slot_name(self.argument(name))

    def count(self, name: str, noun: str) -> str:
        return _count_of(len(self.argument(name)), noun)

    def written(self, name: str) -> str:
        found = [r for r in _written(self._node) if r.startswith(f"{name}:")]
        return (found or [self._node.name])[0].removeprefix(f"{name}:")


def _region(step: ReadableStep, kind: Kind, node: Node) -> str:
    ops, result = f"[{_count_of(_ops(step, node), 'op')}]", _result(step, node)
    reads, writes = _resources(step.reads(node)), _resources(step.writes(node))
    parts = [f"-> {result}", ops] if kind in (Kind.FORWARD, Kind.GRAD_NORM) else [ops]
    if kind is Kind.BACKWARD:
        parts = [f"d {_loss(step, node)} / d ({_enumerate(_targets(step, node), limit=2)})", ops]
    parts += [f"reads {reads}"] if reads else []
    parts += [f"writes {writes}"] if writes else []
    return "  ".join(parts)


def _written(node: Node) -> tuple[str, ...]:
    return tuple(node.meta.get("stepgraph.writes", ()))


def _targets(step: ReadableStep, backward: Node) -> list[str]:
    """Return the parameters whose gradients `backward` computes."""
    found: dict[str, None] = {}
    todo, seen = list(reversed(backward.users)), {backward}
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        effect = node_effect(node)
        if effect is not None and "param" in effect.positions:
            found[slot_name(effect.argument(node, "param"))] = None
        elif effect is not None:
            written = (r for r in _written(node) if r.startswith("grad:"))
            found.update((r.removeprefix("grad:"), None) for r in written)
        elif step.kind(node) is None and node.op == "call_function":
            todo += reversed(node.users)
    return list(found) or ["?"]


def _loss(step: ReadableStep, backward: Node) -> str:
    """Return the name of the loss of `backward`, or the name of its forward."""
    known = backward.meta.get("stepgraph.loss")
    if known is not None:
        return str(known)
    phase = backward.meta.get("stepgraph.phase")
    before = step.nodes[: step.nodes.index(backward)]
    forwards = [n for n in before if step.kind(n) is Kind.FORWARD and step.region(n) is not None]
    own = [n for n in forwards if n.meta.get("stepgraph.phase") == phase] or forwards
    return _result(step, own[-1]) if own else "loss"


def _result(step: ReadableStep, node: Node) -> str:
    """Return the name of a scalar that a region computes, or the number of its results.

    A scalar that a backward differentiates is preferred to another one with a user's name, and
    that to one without; among equals the last.
    """
    region = step.region(node)
    assert region is not None
    scalars = [
        inner
        for inner in region.graph.nodes
        if inner.op == "call_function" and _is_scalar(inner.meta.get("val"))
    ]
    named = [scalar for scalar in scalars if "stepgraph.value" in scalar.meta]
    losses = {other.meta.get("stepgraph.loss") for other in step.nodes}
    found = [scalar for scalar in named if value_name(scalar) in losses] or named or scalars
    if found:
        return value_name(found[-1])
    return _count_of(len(node.users), "value")


def value_name(node: Node) -> str:
    """Return the user's name for a value, or else the name of its node."""
    return str(node.meta.get("stepgraph.value", node.name))


def _resources(names: Iterable[str]) -> str:
    """Return the display names of resources: the first of many, roles in order."""
    parts = []
    for prefix, group in groupby(sorted(set(names) - {OPAQUE}, key=_rank), key=_prefix):
        members = [name.removeprefix(f"{prefix}:") for name in group]
        if prefix == "grad":
            members = [f"{name}.grad" for name in members]
        few = len(members) <= 2
        parts.append(
            ", ".join(members) if few else f"{members[0]}, ... ({_count(members, prefix)})"
        )
    return ", ".join(parts)


def _prefix(resource: str) -> str:
    return resource.partition(":")[0]


def _rank(resource: str) -> tuple[int, str]:
    order = [role.value for role in Role]
    prefix = _prefix(resource)
    return (order.index(prefix) if prefix in order else len(order)), resource


def _aligned(rows: list[tuple[str, str, str, str]]) -> list[str]:
    width = max((len(row[0]) for row in rows), default=0)
    kinds = max((len(row[1]) for row in rows), default=0)
    texts = min(max((len(row[2]) for row in rows), default=0), 90)
    lines = (f"  {i:>{width}}  {k:<{kinds}}  {t:<{texts}}  {at}" for i, k, t, at in rows)
    return [line.rstrip() for line in lines]


def _line(node: Node) -> str:
    return os.path.basename(node.meta.get("stepgraph.at") or "")


def _name(value: object) -> str:
    while isinstance(value, Node) and value.target is torch.ops.aten.detach.default:
        value = value.args[0]
    return value_name(value) if isinstance(value, Node) else repr(value)


def _ops(step: ReadableStep, node: Node) -> int:
    region = step.region(node)
    return 0 if region is None else sum(n.op == "call_function" for n in region.graph.nodes)


def _enumerate(names: Iterable[str], *, limit: int) -> str:
    listed = list(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _count(items: list[str], noun: str) -> str:
    return _count_of(len(items), noun)


def _count_of(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _bytes(value: object) -> int:
    if not isinstance(value, Tensor):
        return 0
    sizes = [s for s in value.shape if isinstance(s, int)]
    return value.numel() * value.element_size() if len(sizes) == value.ndim else 0


def readable(n_bytes: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"

"""Check that a step graph is well formed, and equivalent to the captured one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
import torch
from torch.fx import Node

from stepgraph.effects import Kind
from stepgraph.errors import VerifyError
from stepgraph.ir.effect_nodes import is_update, marker_kind, marker_name
from stepgraph.ir.memory_access import draws_random, is_glue, storages_of, written_arguments
from stepgraph.ir.resources import MADE_IN_STEP, OPAQUE, Access, updates
from stepgraph.ir.views.protocol import ReadableStep

_FOREACH_MUL = torch.ops.aten._foreach_mul_.Tensor


@dataclass(frozen=True)
class Meaning:
    """The effects and data flow of a step graph, to compare with the graph after a pass.

    Attributes:
        effects: The visible effects: operator and resources written, with counts.
        read_from: The last writer of each resource that an operator reads, by operator and
            resource.
    """

    effects: Counter[tuple[str, tuple[str, ...]]]
    read_from: dict[tuple[str, str], str]


def meaning(step: ReadableStep) -> Meaning:
    """Return the effects and data flow of `step`."""
    actions = list(_actions(step.accesses()))
    return Meaning(Counter(_effects(actions)), _read_from(actions))


def verify(step: ReadableStep, *, against: ReadableStep | Meaning | None = None) -> None:
    """Check that `step` is well formed and, given `against`, equivalent to it.

    Without a reference: the FX graphs are sound; every computing node has a kind and declares what
    it reads and writes; no write is undeclared; every read has a writer or is an input; the
    dependencies are acyclic. If the typed graph has not been built, it has not been edited, and
    its declarations follow from the flat one.

    With a reference: no effect is lost or doubled, and every operator and effect that both graphs
    have reads every resource after the same writer. So no node reads a weight after a `step`
    overwrote it unless it did so in the captured program. Operators are identified by their names
    in the flat graph, independent of their regions.

    Raises:
        VerifyError: The message names the first violation.

    Cost: O(nodes + edges) of the flat graphs.
    """
    _check_form(step)
    if step.is_typed:
        for node in step.nodes:
            _check_declared(step, node)
        _check_reads(step)
        if not nx.is_directed_acyclic_graph(step.dependencies()):
            raise VerifyError("the dependencies of a step graph have a cycle")
    if against is not None:
        expected = against if isinstance(against, Meaning) else meaning(against)
        compare(meaning(step), expected)


def compare(found: Meaning, expected: Meaning) -> None:
    """Check that the effects and data flow of a step graph are the expected ones.

    Raises:
        VerifyError: They are not; the message names the first difference.
    """
    _check_effects(found, expected)
    _check_order(found, expected)


def _check_form(step: ReadableStep) -> None:
    for module in step.graphs():
        try:
            module.graph.lint()
        except (RuntimeError, ValueError) as error:
            name = module.__class__.__name__
            raise VerifyError("a step graph is malformed", at=name, found=str(error)) from error


def _check_declared(step: ReadableStep, node: Node) -> None:
    """Check that `node` has a kind and declares all its writes."""
    if step.kind(node) is None:
        if node.op not in ("placeholder", "output") and not is_glue(node):
            raise VerifyError("a node computes but has no kind", at=node.name)
        return
    for key in ("stepgraph.reads", "stepgraph.writes"):
        if key not in node.meta:
            raise VerifyError(f"a node does not state `{key}`", at=node.name)
    region = step.region(node)
    if region is None:
        return
    written = [n for inner in region.graph.nodes for n in _written_inputs(inner)]
    if written and not step.writes(node) - {"rng"}:
        raise VerifyError(
            "a region has an undeclared write", at=f"{node.name}, `{written[0].name}`"
        )
    if any(map(draws_random, region.graph.nodes)) and "rng" not in step.writes(node):
        raise VerifyError("a region draws random numbers without declaring it", at=node.name)


def _written_inputs(node: Node) -> Iterator[Node]:
    for argument in written_arguments(node):
        yield from (root for root in storages_of(argument) if root.op == "placeholder")


def _check_reads(step: ReadableStep) -> None:
    """Check that every resource exists before it is read."""
    known: set[str] = set()
    for node in step.nodes:
        if node.op == "placeholder":
            slot = step.slot(node)
            # a `.grad` that is no input is None, and None can be read
            known |= {slot.resource, f"grad:{slot.name}"}
        known |= step.writes(node)
        for resource in sorted(step.reads(node) - known):
            if resource.startswith(MADE_IN_STEP):
                raise VerifyError(
                    f"{node.name} reads {resource} before anything has written it",
                    at=_at(node),
                    why="it is not an input of the step either",
                )


def _check_effects(found: Meaning, expected: Meaning) -> None:
    """Check that the graphs have the same effects, with the same counts."""
    was, now = expected.effects, found.effects
    for difference, what in ((was - now, "lost"), (now - was, "doubled or added")):
        for name, resources in difference:
            raise VerifyError(
                f"an effect was {what}: {name}",
                at=", ".join(resources) or None,
                found=f"{now[name, resources]} of them, captured {was[name, resources]}",
                why="a pass must keep all effects of the captured program",
            )


def _effects(actions: list[_Action]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the visible effects of a step: the operator, and the resources it writes."""
    for action in actions:
        if not action.access.writes and marker_name(action.node) is None:
            continue
        written = tuple(sorted(r for r in action.access.writes if not r.startswith("value:")))
        if written or (marker_kind(action.node) is not None and action.node.is_impure()):
            yield action.what, written


def _scaled(node: Node, access: Access) -> list[str]:
    """Return the gradients that a node clips, whether or not it updates from them as well."""
    clips = node.meta.get("stepgraph.kind") is Kind.CLIP and node.target is _FOREACH_MUL
    if not clips and not is_update(node):
        return []
    return [name for name in sorted(access.writes) if name.startswith("grad:")]


def _check_order(found: Meaning, captured: Meaning) -> None:
    """Check that every action of both graphs reads every resource after the same writer."""
    was, now = captured.read_from, found.read_from
    wrong = [read for read, writer in now.items() if was.get(read, writer) != writer]
    if wrong:
        first = min(read for read in wrong if read[0] == wrong[0][0])
        name, resource = first
        raise VerifyError(
            f"{name} reads {resource} as written by {_after(now[first])}",
            found=f"the captured program reads what {_after(was[first])} wrote",
            why="a node was moved across one that it depends on",
        )


def _read_from(actions: list[_Action]) -> dict[tuple[str, str], str]:
    """Return, for every node and resource it reads, the last writer of that resource."""
    found: dict[tuple[str, str], str] = {}
    writers: dict[str, str] = {}
    for action in actions:
        for resource in action.access.reads:
            found[action.name, resource] = writers.get(resource, "")
        if not is_glue(action.node) and action.node.op != "placeholder":
            found[action.name, OPAQUE] = writers.get(OPAQUE, "")
        for resource in action.access.writes:
            writers[resource] = action.name
    return found


class _Action(NamedTuple):
    """The accesses of a node, or its accesses to one parameter."""

    name: str
    what: str
    node: Node
    access: Access


def _actions(accessed: Mapping[Node, Access]) -> Iterator[_Action]:
    """Yield the actions of a step, in order.

    An update is divided by parameters, a clearing by gradients, so that running them at once or
    one by one compares equal.
    """
    for node, access in accessed.items():
        if not access.writes and marker_name(node) is None:
            yield _Action(node.name, "compute", node, access)
            continue
        for grad in _scaled(node, access):
            scaled = frozenset([grad])
            yield _Action(f"scale {grad}", "scale", node, Access(scaled, scaled))
            access = Access(access.reads, access.writes - scaled)
        parts = updates(node)
        if marker_kind(node) is Kind.ZERO_GRAD:
            for resource in sorted(access.writes):
                yield _Action(
                    f"clear {resource}", "clear", node, Access(writes=frozenset([resource]))
                )
            continue
        if parts is None:
            yield _Action(node.name, str(node.target), node, access)
            continue
        name = node.meta.get("stepgraph.part_of", node.name)
        for slot, part in parts.items():
            yield _Action(f"{name}[{slot}]", "update", node, part)
        reads = access.reads.difference(*(part.reads for part in parts.values()))
        writes = access.writes.difference(*(part.writes for part in parts.values()))
        if writes:  # memory with several names
            yield _Action(name, "update", node, Access(reads, writes))


def _after(writer: str) -> str:
    return writer or "the caller"


def _at(node: Node) -> str | None:
    line: str | None = node.meta.get("stepgraph.at")
    return line

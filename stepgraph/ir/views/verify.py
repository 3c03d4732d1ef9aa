"""verify: a step graph is well formed, and means what the captured one means."""

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
    """What a step graph does: kept while a pass edits the graph, to compare with.

    Attributes:
        effects: What the user can see: operator and resources written, with counts.
        read_from: Who wrote last what each operator reads, by operator and resource.
    """

    effects: Counter[tuple[str, tuple[str, ...]]]
    read_from: dict[tuple[str, str], str]


def meaning(step: ReadableStep) -> Meaning:
    """Return what `step` does."""
    deeds = list(_deeds(step.accesses()))
    return Meaning(Counter(_effects(deeds)), _read_from(deeds))


def verify(step: ReadableStep, *, against: ReadableStep | Meaning | None = None) -> None:
    """Check that `step` is well formed and, given `against`, that it means the same.

    Without a reference: the FX graphs are sound; every computing node has a kind and says what it
    reads and writes; nothing is written in silence; every read has a writer or is an input; the
    dependencies are acyclic. Where the typed graph has not been built, and so not been edited,
    what it will say follows from the flat one.

    With one: no effect is lost or doubled, and every operator and effect that both graphs have
    reads, from every resource, what the same writer left there. So no node reads a weight after a
    `step` overwrote it unless it did so in the captured program. Operators are recognised by
    their names in the flat graph, whatever regions they are in now.

    Raises:
        VerifyError: With the first thing found.

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
    """Check that a step graph that means `found` means what it should.

    Raises:
        VerifyError: It does not, with the first thing found.
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
    """Check that `node` says what it is and hides no write."""
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
            "a region writes an argument in silence", at=f"{node.name}, `{written[0].name}`"
        )
    if any(map(draws_random, region.graph.nodes)) and "rng" not in step.writes(node):
        raise VerifyError("a region draws random numbers in silence", at=node.name)


def _written_inputs(node: Node) -> Iterator[Node]:
    for argument in written_arguments(node):
        yield from (root for root in storages_of(argument) if root.op == "placeholder")


def _check_reads(step: ReadableStep) -> None:
    """Check that whatever is read exists by then."""
    known: set[str] = set()
    for node in step.nodes:
        if node.op == "placeholder":
            slot = step.slot(node)
            # a `.grad` that is no input is None, which can be read
            known |= {slot.resource, f"grad:{slot.name}"}
        known |= step.writes(node)
        for resource in sorted(step.reads(node) - known):
            if resource.startswith(MADE_IN_STEP):
                raise VerifyError(
                    f"{node.name} reads {resource} before anything has written it",
                    at=_at(node),
                    why="it is no input of the step either",
                )


def _check_effects(found: Meaning, expected: Meaning) -> None:
    """Check that the graphs have the same effects, each as often."""
    was, now = expected.effects, found.effects
    for difference, what in ((was - now, "lost"), (now - was, "doubled or invented")):
        for name, resources in difference:
            raise VerifyError(
                f"an effect was {what}: {name}",
                at=", ".join(resources) or None,
                found=f"{now[name, resources]} of them, captured {was[name, resources]}",
                why="a step that does something else trains something else",
            )


def _effects(deeds: list[_Deed]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what the user can see a step do: the operator, and the resources it writes."""
    for deed in deeds:
        if not deed.access.writes and marker_name(deed.node) is None:
            continue
        written = tuple(sorted(r for r in deed.access.writes if not r.startswith("value:")))
        if written or (marker_kind(deed.node) is not None and deed.node.is_impure()):
            yield deed.what, written


def _scaled(node: Node, access: Access) -> list[str]:
    """Return the gradients that a node clips, whether or not it updates from them as well."""
    clips = node.meta.get("stepgraph.kind") is Kind.CLIP and node.target is _FOREACH_MUL
    if not clips and not is_update(node):
        return []
    return [name for name in sorted(access.writes) if name.startswith("grad:")]


def _check_order(found: Meaning, captured: Meaning) -> None:
    """Check that whatever both graphs do reads what the same writer left."""
    was, now = captured.read_from, found.read_from
    wrong = [read for read, writer in now.items() if was.get(read, writer) != writer]
    if wrong:
        first = min(read for read in wrong if read[0] == wrong[0][0])
        name, resource = first
        raise VerifyError(
            f"{name} reads {resource} as {_after(now[first])} left it",
            found=f"the captured program reads what {_after(was[first])} left",
            why="a node was moved across one that it depends on",
        )


def _read_from(deeds: list[_Deed]) -> dict[tuple[str, str], str]:
    """Return, for every node and resource it reads, who wrote that resource last."""
    found: dict[tuple[str, str], str] = {}
    writers: dict[str, str] = {}
    for deed in deeds:
        for resource in deed.access.reads:
            found[deed.name, resource] = writers.get(resource, "")
        if not is_glue(deed.node) and deed.node.op != "placeholder":
            found[deed.name, OPAQUE] = writers.get(OPAQUE, "")
        for resource in deed.access.writes:
            writers[resource] = deed.name
    return found


class _Deed(NamedTuple):
    """What a node does, or does to one parameter."""

    name: str
    what: str
    node: Node
    access: Access


def _deeds(accessed: Mapping[Node, Access]) -> Iterator[_Deed]:
    """Yield what is done, in order.

    An update is taken apart by parameters, a clearing by gradients: whether they are done at once
    or one by one is the same.
    """
    for node, access in accessed.items():
        if not access.writes and marker_name(node) is None:
            yield _Deed(node.name, "compute", node, access)
            continue
        for grad in _scaled(node, access):
            scaled = frozenset([grad])
            yield _Deed(f"scale {grad}", "scale", node, Access(scaled, scaled))
            access = Access(access.reads, access.writes - scaled)
        parts = updates(node)
        if marker_kind(node) is Kind.ZERO_GRAD:
            for resource in sorted(access.writes):
                yield _Deed(
                    f"clear {resource}", "clear", node, Access(writes=frozenset([resource]))
                )
            continue
        if parts is None:
            yield _Deed(node.name, str(node.target), node, access)
            continue
        name = node.meta.get("stepgraph.part_of", node.name)
        for slot, part in parts.items():
            yield _Deed(f"{name}[{slot}]", "update", node, part)
        reads = access.reads.difference(*(part.reads for part in parts.values()))
        writes = access.writes.difference(*(part.writes for part in parts.values()))
        if writes:  # memory of several names
            yield _Deed(name, "update", node, Access(reads, writes))


def _after(writer: str) -> str:
    return writer or "the caller"


def _at(node: Node) -> str | None:
    line: str | None = node.meta.get("stepgraph.at")
    return line

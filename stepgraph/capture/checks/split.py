"""Checks that a step whose batch is split computes the same as for the whole batch.

Up to rounding. The graph does not show whether a loss is a mean; that is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NoReturn

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from stepgraph.capture.options.microbatches import Microbatches
from stepgraph.errors import ConfigurationError
from stepgraph.ir import (
    Access,
    Kind,
    Role,
    accesses,
    all_storages,
    draws_random,
    marker_argument,
    node_effect,
)

_ALLOW = "stepgraph.Microbatches(n, {}=True), if that is what you want"
_STATISTICS = _ALLOW.format("allow_batch_statistics")


def check_parts(graph: Graph, traced: GraphModule, split: Microbatches) -> None:
    """Check a step that has been traced with its batch split.

    Args:
        graph: Its flat graph.
        traced: Dynamo's graph, in which functions still have their names.
        split: How the batch is split, and which differences are allowed.

    Raises:
        ConfigurationError: The step would compute something else for the whole batch.
    """
    access = accesses(graph, all_storages(graph))
    if not split.allow_randomness:
        _check_draws(graph)
    if not split.allow_batch_statistics:
        _check_normalisation(traced)
    _check_writes(graph, access, split)
    _check_phases(graph, access)
    _check_effects(graph)
    _check_results(graph)


def _check_draws(graph: Graph) -> None:
    """Refuse random operators such as dropout: each part would draw its own numbers."""
    for node in _computing(graph):
        if draws_random(node) and marker_argument(node, "dropout_p") != 0.0:
            _refuse(
                node,
                "the step draws random numbers",
                why="draws for the parts are not the draw for the batch",
                hint=_ALLOW.format("allow_randomness"),
            )


def _check_normalisation(traced: GraphModule) -> None:
    """Refuse batch normalisation in training, also in subgraphs such as checkpoints."""
    for module in traced.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            if node.op == "call_function" and _normalises(node):
                _refuse(
                    None,
                    "a batch normalisation in training",
                    why="the statistics of a part are not those of the batch",
                    hint=f"a group norm; {_STATISTICS}",
                )


def _normalises(node: Node) -> bool:
    if "batch_norm" not in getattr(node.target, "__name__", ""):
        return False
    given = node.kwargs.get("training", node.args[5] if len(node.args) > 5 else False)
    return given is not False


def _check_writes(graph: Graph, access: dict[Node, Access], split: Microbatches) -> None:
    """Refuse nodes that change a tensor that outlives the call: it would change in each part."""
    last = max((node.meta.get("stepgraph.part") or 0 for node in graph.nodes), default=0)
    allowed = _pieces(graph, split)
    if split.allow_batch_statistics:
        allowed |= {
            name for a in access.values() for name in a.writes if name.startswith("buffer:")
        }
    for node in _computing(graph):
        kind = node.meta.get("stepgraph.kind")
        clips = kind is Kind.CLIP and node.meta.get("stepgraph.part") == last
        if kind is Kind.ZERO_GRAD or clips:
            continue  # these run in one part only
        for role, name in _slots(access[node].writes - allowed):
            _refuse(
                node,
                f"the step changes {name}{'.grad' if role is Role.GRAD else ''}",
                why="it would change once for each part of the batch",
                hint=f"change it outside of the step{_buffers(role)}",
            )


def _pieces(graph: Graph, split: Microbatches) -> set[str]:
    """Return the inputs that are split, one piece for each part."""
    found = set()
    for node in graph.nodes:
        slot, value = node.meta.get("stepgraph.slot"), node.meta.get("val")
        if slot is None or slot.role is not Role.BATCH or not isinstance(value, Tensor):
            continue
        argument = re.split(r"\W", slot.name, maxsplit=1)[0]
        if value.dim() and value.shape[0] != 1 and argument not in split.whole:
            found.add(slot.resource)
    return found


def _buffers(role: Role) -> str:
    return f"; {_STATISTICS}" if role is Role.BUFFER else ""


def _slots(resources: Iterable[str]) -> Iterator[tuple[Role, str]]:
    """Yield the slots among resources, in order."""
    roles = {role.value: role for role in Role}
    for resource in sorted(resources):
        role, _, name = resource.partition(":")
        if role in roles:
            yield roles[role], name


def _computing(graph: Graph) -> list[Node]:
    """Return the nodes that are not effects."""
    return [n for n in graph.nodes if n.op == "call_function" and node_effect(n) is None]


def _check_phases(graph: Graph, access: dict[Node, Access]) -> None:
    """Refuse nodes that read weights after the step has updated them.

    All parts but the last would read the old weights: in a GAN, the generator would train on a
    discriminator that has not been updated yet.
    """
    updated: set[str] = set()
    computing = set(_computing(graph))
    for node in graph.nodes:
        effect = node_effect(node)
        if effect is not None and effect.update is not None:
            updated |= {name for name in access[node].writes if name.startswith("param:")}
        elif node in computing:
            used = sorted(access[node].reads & updated)
            if used:
                _refuse(
                    node,
                    f"the step computes with {used[0].removeprefix('param:')} after its update",
                    why="with a split batch, updates come at the end of the call",
                    hint="a compiled step for each phase, with an update at its end",
                )


def _check_effects(graph: Graph) -> None:
    """Refuse effects that would run once for each part, or on a part of the batch only."""
    for node in graph.nodes:
        effect = node_effect(node)
        if effect is None or effect.objects_to_split is None:
            continue
        objection = effect.objects_to_split(node)
        if objection is not None:
            _refuse(node, objection.found, why=objection.why, hint=objection.hint)


def _check_results(graph: Graph) -> None:
    """Refuse to average results computed from gradients: they are complete in the last part."""
    tainted: set[Node] = set()
    for node in graph.nodes:
        is_grad = node.op == "placeholder" and node.meta["stepgraph.slot"].role is Role.GRAD
        effect = node_effect(node)
        if is_grad or (effect is not None and effect.returns_value):
            tainted.add(node)
        elif node.op == "call_function" and tainted.intersection(node.all_input_nodes):
            tainted.add(node)
            if node.meta.get("stepgraph.result"):
                _refuse(
                    node,
                    "the step returns a value computed from gradients or hyper-parameters",
                    why="results of the parts are averaged; gradients are complete after the last",
                    hint="compute it from .grad when the call has returned",
                )


def _refuse(node: Node | None, found: str, *, why: str, hint: str) -> NoReturn:
    raise ConfigurationError(
        "microbatches would change what this step does",
        at=None if node is None else node.meta.get("stepgraph.at"),
        found=found,
        why=why,
        hint=hint,
    )

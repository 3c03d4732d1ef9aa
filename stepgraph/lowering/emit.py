"""Emit the Python source of a flat step graph: no autograd, effects in program order."""

from __future__ import annotations

import inspect
import linecache
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from stepgraph.analysis import stealable
from stepgraph.effects import Effect, RestoreObject, Update
from stepgraph.ir import all_storages, marker_argument, node_effect
from stepgraph.lowering.regions.compiled_run import CompiledRun
from stepgraph.passes import EARLY
from stepgraph.torch_private import below_autograd

_REPLACED = {
    # Strides of fake tensors may differ from those of the kernels. A reshape that was a view in
    # the trace is emitted as a reshape, so that the real strides decide, as in eager.
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
}
_DIRECT = {
    torch.ops.aten.add.Tensor: torch.add,
    torch.ops.aten.addmm.default: torch.addmm,
    torch.ops.aten.bmm.default: torch.bmm,
    torch.ops.aten.mm.default: torch.mm,
    torch.ops.aten.mul.Tensor: torch.mul,
    torch.ops.aten.permute.default: torch.permute,
    torch.ops.aten.relu.default: torch.relu,
    torch.ops.aten.reshape.default: torch.reshape,
    torch.ops.aten.select.int: torch.select,
    torch.ops.aten.sigmoid.default: torch.sigmoid,
    torch.ops.aten.stack.default: torch.stack,
    torch.ops.aten.sub.Tensor: torch.sub,
    torch.ops.aten.sum.dim_IntList: torch.sum,
    torch.ops.aten.t.default: torch.t,
    torch.ops.aten.tanh.default: torch.tanh,
    torch.ops.aten.transpose.int: torch.transpose,
}
"""Faster Python functions for the same operators: 0.5 to 1 microsecond less for each call."""

_VARIABLE = re.compile(r"t\d+")
"""Names of the values of nodes: constants must have other names."""

_DETACH = torch.ops.aten.detach.default
_LOOK_AT_GRAD_MODE = {torch.ops.aten.mkldnn_rnn_layer.default}
_sources = 0


@dataclass(frozen=True)
class Emitted:
    """The Python source of a program and the function compiled from it."""

    function: Callable[..., Any]
    source: str


def emit(
    flat: GraphModule,
    subjects: Mapping[int, Any],
    *,
    withhold: bool = False,
    until_update: bool = False,
    updates: Mapping[int, Update] | None = None,
) -> Emitted:
    """Return a function of the graph's inputs that performs the step and returns its outputs.

    Args:
        flat: The flat step graph.
        subjects: The tracked objects that the graph's markers act on, by number.
        withhold: Leave out appends to the user's lists.
        until_update: Stop before the first update.
        updates: The update that replaces an optimizer's own `step()`, by its number.
    """
    return _Emitter(flat.graph, dict(subjects), withhold, until_update, updates or {}).emit()


def first_update(graph: Graph) -> Node | None:
    """Return the first node that runs code of an optimizer, scheduler, scaler or average.

    Nodes that `EarlyUpdate` has moved up do not count: in the captured step they come later.
    """
    found = (node for node in graph.nodes if _enters_object(node_effect(node)))
    return next((node for node in found if EARLY not in node.meta), None)


def _enters_object(effect: Effect | None) -> bool:
    """Return whether an effect runs a method of one of the user's objects."""
    return effect is not None and isinstance(effect.rehearsal, RestoreObject)


@dataclass
class _Emitter:
    graph: Graph
    subjects: dict[int, Any]
    withhold: bool
    until_update: bool
    updates: Mapping[int, Update]
    constants: dict[str, Any] = field(default_factory=dict)
    names: dict[Node, str] = field(default_factory=dict)
    by_value: dict[int, str] = field(default_factory=dict)
    body: list[str] = field(default_factory=list)

    def emit(self) -> Emitted:
        self.last_use = _last_uses(self.graph)
        self.stolen = stealable(list(self.graph.nodes), all_storages(self.graph))
        self.plain = plain_numbers(self.graph)
        stop = first_update(self.graph) if self.until_update else None
        inputs = []
        for node in self.graph.nodes:
            if self.until_update and EARLY in node.meta:
                continue  # the rehearsal ends where the captured step has its first update
            if node is stop:
                self.prepare(node)
                self.body.append("return None")
                break
            if node.op == "placeholder":
                inputs.append(self.name(node))
            elif node.op == "output":
                outputs = [self.argument(a) for a in node.args[0]]
                self.body.append(f"return ({', '.join(outputs)}{',' if outputs else ''})")
            elif node not in self.plain:
                self.statement(node)
        return self._compile(inputs)

    def statement(self, node: Any) -> None:
        effect = node_effect(node)
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(self.graph.owning_module)
            self.names[node] = self.constant(node.target, value)
        elif effect is not None:
            if not (self.withhold and effect.rehearsal == "withhold"):
                self.effect(node, effect)
        elif isinstance(node.target, CompiledRun):
            self.region(node)
        elif isinstance(getattr(node.args[0] if node.args else None, "target", None), CompiledRun):
            return  # unpacked where the region is called
        else:
            function = self.function(node)
            call = f"{function}({self.arguments(node)})"
            self.body.append(f"{self.name(node)} = {call}" if node.users else call)
        dead = [self.names[n] for n in self.last_use.get(node, ()) if n in self.names]
        if dead:
            self.body.append(f"del {', '.join(dict.fromkeys(dead))}")

    def region(self, node: Any) -> None:
        """Call a region; its results are unpacked at once."""
        items = {user.args[1]: self.name(user) for user in node.users}
        targets = [items.get(i, "_") for i in range(len(node.meta["val"]))]
        call = f"{self.constant(node.target.name, node.target)}.run([{self.arguments(node)}])"
        self.body.append(f"{', '.join(targets)}, = {call}" if items else call)

    def effect(self, node: Any, effect: Effect) -> None:
        """Write the statements of an effect."""
        emission = _Emission(self, node, effect)
        if effect.emit is not None:
            self.body += effect.emit(emission)
        else:
            target = f"{self.name(node)} = " if node.users else ""
            self.body.append(f"{target}{emission.call()}")

    def prepare(self, node: Any) -> None:
        """Write the statements of an effect that precede the call of the user's object."""
        effect = node_effect(node)
        if effect is not None and effect.prepare is not None:
            self.body += effect.prepare(_Emission(self, node, effect))

    def slot(self, node: Any) -> str:
        """Return the name of the input that `node` is, through detach."""
        while node.target is _DETACH:
            node = node.args[0]
        return self.name(node)

    def name(self, node: Node) -> str:
        return self.names.setdefault(node, f"t{len(self.names)}")

    def function(self, node: Any) -> str:
        target = _REPLACED.get(node.target, node.target)
        if target in _LOOK_AT_GRAD_MODE:
            return self.constant(target.__name__, below_autograd(target._op))
        if target in _DIRECT and not node.kwargs and _takes_tensors(node):
            return self.constant(_DIRECT[target].__name__, _DIRECT[target])
        if isinstance(target, torch._ops.OpOverload):
            return self.constant(str(target).replace("::", ".").replace(".", "_"), target._op)
        return self.constant(getattr(target, "__name__", "f"), target)

    def constant(self, name: str, value: Any) -> str:
        known = self.by_value.get(id(value))
        if known is None:
            base = known = "".join(c if c.isalnum() else "_" for c in name)
            while known in self.constants or _VARIABLE.fullmatch(known):
                known = f"{base}_{len(self.constants)}"
            self.constants[known] = value
            self.by_value[id(value)] = known
        return known

    def arguments(self, node: Node) -> str:
        positional = [self.argument(a) for a in node.args]
        named = [f"{key}={self.argument(value)}" for key, value in node.kwargs.items()]
        return ", ".join(positional + named)

    def argument(self, value: Any) -> str:
        if isinstance(value, Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            items = ", ".join(self.argument(v) for v in value)
            return f"[{items}]"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        if isinstance(value, float) and value == value and abs(value) != float("inf"):
            return repr(value)
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return f"slice({', '.join(self.argument(p) for p in parts)})"
        return self.constant(type(value).__name__, value)

    def _compile(self, inputs: list[str]) -> Emitted:
        global _sources
        _sources += 1
        lines = [f"def program({', '.join(inputs)}):", *(f"    {line}" for line in self.body)]
        source = "\n".join(lines) + "\n"
        file = f"<stepgraph program {_sources}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        namespace = dict(self.constants)
        exec(compile(source, file, "exec"), namespace)
        return Emitted(namespace["program"], source)


class _Emission:
    """What an effect may use to write its statements; see `stepgraph.effects.Emission`."""

    def __init__(self, emitter: _Emitter, node: Node, effect: Effect) -> None:
        self._emitter, self._node, self._effect = emitter, node, effect

    @property
    def result(self) -> str:
        return self._emitter.name(self._node)

    @property
    def takes_value(self) -> bool:
        return self._node in self._emitter.stolen

    def raw(self, name: str) -> Any:
        return self._effect.argument(self._node, name)

    def argument(self, name: str) -> str:
        return self._emitter.argument(self.raw(name))

    def slots(self, name: str) -> list[str]:
        value = self.raw(name)
        return [
            self._emitter.slot(v) for v in (value if isinstance(value, list | tuple) else [value])
        ]

    def number(self, name: str) -> str | None:
        value = self._emitter.plain.get(self.raw(name))
        return None if value is None else self._emitter.argument(value)

    def object(self, name: str) -> Any:
        return self._emitter.subjects[self.raw(name)].value

    def object_name(self, name: str) -> str:
        value = self.object(name)
        return self._emitter.constant(type(value).__name__, value)

    def constant(self, name: str, value: Any) -> str:
        return self._emitter.constant(name, value)

    def update(self, name: str) -> Update | None:
        return self._emitter.updates.get(self.raw(name))

    def call(self) -> str:
        run = self._effect.run
        function = self.constant(run.__name__, run)
        return f"{function}({', '.join(map(self._passed, inspect.signature(run).parameters))})"

    def _passed(self, parameter: str) -> str:
        """Return the Python of an argument of `run`, by the name of the parameter."""
        if parameter == "tracked":
            return self.constant("tracked", self._emitter.subjects[self.raw("subject")])
        if parameter in self._effect.object_arguments:
            return self.object_name(parameter)
        return self.argument(parameter)


def plain_numbers(graph: Graph) -> dict[Any, int | float]:
    """Return the tensors that are made from a number only to be logged, and the number.

    A trace passes numbers as tensors; to make one costs as much as several operators.
    """
    found: dict[Any, int | float] = {}
    for node in graph.nodes:
        if node.target is torch.ops.aten.scalar_tensor.default and _is_number(node.args[0]):
            chain = [node]
            for link in chain:
                chain += [user for user in link.users if user.target is _DETACH]
            readers = [user for link in chain for user in link.users if user.target is not _DETACH]
            if all(_takes_number(reader) for reader in readers):
                found.update(dict.fromkeys(chain, node.args[0]))
    return found


def _takes_number(node: Node) -> bool:
    """Return whether an effect reads only the number in a tensor."""
    effect = node_effect(node)
    return effect is not None and bool(marker_argument(node, "as_number"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _takes_tensors(node: Any) -> bool:
    """Return whether every tensor argument is a tensor: a number may select another overload."""
    given = zip(node.target._schema.arguments, node.args, strict=False)
    tensors = [value for argument, value in given if str(argument.type) == "Tensor"]
    return all(isinstance(v, Node) and isinstance(v.meta.get("val"), Tensor) for v in tensors)


def _last_uses(graph: Graph) -> dict[Node, list[Node]]:
    """Return, for every node, the values that are not read after it."""
    seen: set[Node] = set()
    dying: dict[Node, list[Node]] = {}
    for node in reversed(graph.nodes):
        for used in (*node.all_input_nodes, node):
            if used not in seen:
                seen.add(used)
                if (
                    node.op != "output"
                    and used.op not in ("placeholder", "get_attr")
                    and used is not node
                ):
                    dying.setdefault(node, []).append(used)
    return dying

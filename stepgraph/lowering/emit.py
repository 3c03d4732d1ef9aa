"""From a flat step graph to Python that runs it: no autograd, effects in program order."""

from __future__ import annotations

import linecache
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from stepgraph.analysis import stealable
from stepgraph.ir import all_storages
from stepgraph.ir.markers import MARKERS
from stepgraph.lowering.regions.compiled_run import Region
from stepgraph.passes import EARLY
from stepgraph.runtime import PartOfStep, UpdateAverage, effects

_UPDATES = (
    "step",
    "step_part",
    "clipped_step",
    "lr_step",
    "unscale",
    "scaled_step",
    "scale_update",
    "ema",
    "set_hyper",
)
_REPLACED = {
    # Strides of fake tensors are not always those of the kernels. Where a trace saw that a reshape
    # needs no copy, the real memory decides again, as in eager.
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
"""The same operators by a shorter way: half a microsecond to one less for each call."""

_DETACH = torch.ops.aten.detach.default
_LOOK_AT_GRAD_MODE = {torch.ops.aten.mkldnn_rnn_layer.default}
_sources = 0


class Update(Protocol):
    """What updates in the place of an optimizer's own `step()`."""

    def __call__(self) -> None:
        """Update all parameters."""

    def part(self, places: Sequence[int], *, last: bool) -> Callable[[], None]:
        """Return what updates the parameters at `places`; see the marker `step_part`."""

    def clipped(self, factor: Tensor) -> None:
        """Multiply the gradients by `factor`, then update all parameters."""

    def scaled(self, scaler: Any) -> None:
        """Run `scaler.step(optimizer)`, with this in the place of the optimizer's `step()`."""


@dataclass(frozen=True)
class Emitted:
    """Python source of a program and the function made from it."""

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
        subjects: The real objects behind the graph's markers, by number.
        withhold: Leave out what the user would see: appends to lists.
        until_update: Stop before the first update.
        updates: What runs in the place of an optimizer's own `step()`, by its number.
    """
    return _Emitter(flat.graph, dict(subjects), withhold, until_update, updates or {}).emit()


def first_update(graph: Graph) -> Node | None:
    """Return the first node that runs code of an optimizer, scheduler, scaler or average.

    What an early update has moved up does not count: in the captured step it comes later.
    """
    found = (node for node in graph.nodes if MARKERS.get(node.target) in _UPDATES)
    return next((node for node in found if EARLY not in node.meta), None)


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
                self.clip(node)
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
        marker = MARKERS.get(node.target)
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(self.graph.owning_module)
            self.names[node] = self.constant(node.target, value)
        elif marker is not None:
            self.marker(marker, node)
        elif isinstance(node.target, Region):
            self.region(node)
        elif isinstance(getattr(node.args[0] if node.args else None, "target", None), Region):
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

    def marker(self, marker: str, node: Any) -> None:
        write = self.body.append
        args = node.args
        if marker == "first_grad":
            param, value = self.argument(args[0]), self.argument(args[1])
            call = self.constant("first_grad", effects.first_grad)
            stolen = node in self.stolen
            write(f"{self.name(node)} = {value if stolen else f'{call}({param}, {value})'}")
        elif marker == "add_grad_":
            write(f"{self.argument(args[0])}.add_({self.argument(args[1])})")
        elif marker == "set_grad":
            write(f"{self.slot(args[0])}.grad = {self.argument(args[1])}")
        elif marker == "toggle":
            write(f"{self.slot(args[0])}.requires_grad_({args[1]})")
        elif marker == "zero_grad":
            for param in args[0]:
                write(f"{self.slot(param)}.grad = None")
        elif marker == "check":
            write(f"{self.constant('check', effects.check)}({self.argument(args[0])})")
        elif marker == "log":
            if not self.withhold:
                values = self.constant(f"subject_{args[1]}", self.subjects[args[1]].value)
                self.log(values, args[0], is_number=args[2])
        elif marker == "ema":
            self.average(node)
        else:
            self.update(marker, node)

    def log(self, values: str, value: Any, *, is_number: bool) -> None:
        logged = self.argument(self.plain.get(value, value))
        read = is_number and value not in self.plain
        self.body.append(f"{values}.append({logged}{'.item()' if read else ''})")

    def update(self, marker: str, node: Any) -> None:
        if marker == "clipped_step" and node.args[3] in self.updates:
            update = self.constant(f"update_{node.args[3]}", self.updates[node.args[3]])
            self.body.append(f"{update}.clipped({self.argument(node.args[2])})")
            return
        if marker == "scaled_step" and node.args[3] in self.updates:
            self.scaled(self.updates[node.args[3]].scaled, node)
            return
        self.clip(node)
        own = self.own_update(marker, node)
        if own is not None:
            self.body.append(f"{self.constant(f'update_{node.args[2]}', own)}()")
            return
        method = "step" if marker == "clipped_step" else marker
        call = self.constant(f"run_{method}", getattr(effects, f"run_{method}"))
        arguments = []
        for argument, value in zip(node.target._schema.arguments, node.args, strict=True):
            if argument.name in ("subject", "optimizer"):
                reads = marker == "hyper"
                subject = self.subjects[value] if reads else self.subjects[value].value
                arguments.append(self.constant(f"subject_{value}", subject))
            elif argument.name in effects.PASSED.get(marker, ()):
                arguments.append(self.argument(value))
        target = f"{self.name(node)} = " if node.users else ""
        self.body.append(f"{target}{call}({', '.join(arguments)})")

    def average(self, node: Any) -> None:
        """Update an averaged model."""
        _, params, buffers, number = node.args
        update = self.constant(f"average_{number}", UpdateAverage(self.subjects[number].value))
        self.body.append(f"{update}({self.argument(params)}, {self.argument(buffers)})")

    def scaled(self, update: Callable[[Any], None], node: Any) -> None:
        """Let an update take a scaler's part of its own `step()`."""
        scaler = self.constant(f"subject_{node.args[2]}", self.subjects[node.args[2]].value)
        self.body.append(f"{self.constant(f'scaled_{node.args[3]}', update)}({scaler})")

    def clip(self, node: Any) -> None:
        """Multiply the gradients of an update by the factor that clips them, if it has one."""
        if MARKERS.get(node.target) == "clipped_step":
            scale = self.constant("foreach_mul_", torch._foreach_mul_)
            grads, factor = map(self.argument, node.args[1:3])
            self.body.append(f"{scale}({grads}, {factor})")

    def own_update(self, marker: str, node: Any) -> Callable[[], None] | None:
        """Return what updates in the place of an optimizer's own whole `step()`."""
        if marker == "step":
            return self.updates.get(node.args[2])
        if marker != "step_part":
            return None
        _, _, number, places, last = node.args
        if number in self.updates:
            return self.updates[number].part(places, last=last)
        return PartOfStep(self.subjects[number].value, places, last=last)

    def slot(self, node: Any) -> str:
        """Return the name of the input behind `node`, through detach."""
        while node.target is _DETACH:
            node = node.args[0]
        return self.name(node)

    def name(self, node: Node) -> str:
        return self.names.setdefault(node, f"t{len(self.names)}")

    def function(self, node: Any) -> str:
        target = _REPLACED.get(node.target, node.target)
        if target in _LOOK_AT_GRAD_MODE:
            return self.constant(target.__name__, effects.below_autograd(target._op))
        if target in _DIRECT and not node.kwargs and _takes_tensors(node):
            return self.constant(_DIRECT[target].__name__, _DIRECT[target])
        if isinstance(target, torch._ops.OpOverload):
            return self.constant(str(target).replace("::", ".").replace(".", "_"), target._op)
        return self.constant(getattr(target, "__name__", "f"), target)

    def constant(self, name: str, value: Any) -> str:
        known = self.by_value.get(id(value))
        if known is None:
            known = name if name not in self.constants else f"{name}_{len(self.constants)}"
            known = "".join(c if c.isalnum() else "_" for c in known)
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


def plain_numbers(graph: Graph) -> dict[Any, int | float]:
    """Return the tensors made of a number only to be logged, and the number.

    A trace can hand over nothing but tensors; making one costs as much as several operators.
    """
    found: dict[Any, int | float] = {}
    for node in graph.nodes:
        if node.target is torch.ops.aten.scalar_tensor.default and _is_number(node.args[0]):
            chain = [node]
            for link in chain:
                chain += [user for user in link.users if user.target is _DETACH]
            readers = [user for link in chain for user in link.users if user.target is not _DETACH]
            if all(MARKERS.get(reader.target) == "log" and reader.args[2] for reader in readers):
                found.update(dict.fromkeys(chain, node.args[0]))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _takes_tensors(node: Any) -> bool:
    """Return whether every tensor argument is one: a number might mean another overload."""
    given = zip(node.target._schema.arguments, node.args, strict=False)
    tensors = [value for argument, value in given if str(argument.type) == "Tensor"]
    return all(isinstance(v, Node) and isinstance(v.meta.get("val"), Tensor) for v in tensors)


def _last_uses(graph: Graph) -> dict[Node, list[Node]]:
    """Return, for every node, the values that nobody reads after it."""
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

"""`Effect`: one value that says all there is to know of an effect of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.effects.access import Resource
from stepgraph.effects.kind import Kind


class Phrase(NamedTuple):
    """What one node does, where a run of such nodes shares a line.

    The line is `before`, the texts of all nodes, `after`: "requires_grad of a = True, b = True".
    """

    text: str
    before: str = ""
    after: str = ""


class Words(Protocol):
    """What an effect may use to say what its node does."""

    label: str
    """What people call the tracked object in the argument `subject`, such as `Adam(d_opt)`."""

    last_label: str
    """The same for the optimizer behind the last tracked object among the arguments."""

    barrier: str
    """`" [opaque]"` where nothing may move across the node, else empty."""

    def argument(self, name: str) -> Any:
        """Return an argument as the graph has it: a node, a number, a list of nodes."""

    def value(self, name: str) -> str:
        """Return the name of the value in an argument."""

    def slot(self, name: str) -> str:
        """Return the name of the slot in an argument, such as `D.0.weight`."""

    def count(self, name: str, noun: str) -> str:
        """Return how many items an argument has, with their noun: `4 params`."""

    def written(self, name: str) -> str:
        """Return the slot of the first resource of this name that the node writes."""


class Update(Protocol):
    """What updates in the place of an optimizer's own `step()`."""

    def __call__(self) -> None:
        """Update all parameters."""

    def part(self, places: Sequence[int], *, last: bool) -> Callable[[], None]:
        """Return what updates the parameters at `places` among all, the last of them or not."""

    def clipped(self, factor: Tensor) -> None:
        """Multiply the gradients by `factor`, `[]`, then update all parameters."""

    def scaled(self, scaler: Any) -> None:
        """Run `scaler.step(optimizer)`, with this in the place of the optimizer's `step()`."""


class Emission(Protocol):
    """What an effect may use to write the Python that a program runs for its node."""

    @property
    def result(self) -> str:
        """The variable for the value of the node."""

    @property
    def takes_value(self) -> bool:
        """Whether a gradient that the node makes may be the value itself: nobody else has it."""

    def raw(self, name: str) -> Any:
        """Return an argument as the graph has it."""

    def argument(self, name: str) -> str:
        """Return the Python of an argument."""

    def slots(self, name: str) -> list[str]:
        """Return the variables of the inputs behind the tensors in an argument, undetached."""

    def number(self, name: str) -> str | None:
        """Return the Python of a number that was made a tensor for this effect only, or None."""

    def object(self, name: str) -> Any:
        """Return the user's object whose number an argument is."""

    def object_name(self, name: str) -> str:
        """Return a variable of the program that holds that object."""

    def constant(self, name: str, value: Any) -> str:
        """Return a variable of the program that holds `value`."""

    def update(self, name: str) -> Update | None:
        """Return what updates in the place of the optimizer in an argument; None for itself."""

    def call(self) -> str:
        """Return the call of the effect's `run` with the arguments that it takes."""


class Objection(NamedTuple):
    """Why an effect has no meaning where a batch is split: found, why, what to try."""

    found: str
    why: str
    hint: str


class InRegion(NamedTuple):
    """What a compiler gets in the place of an effect: an ATen operator, and which arguments."""

    op: torch._ops.OpOverload
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class NotRecordable:
    """A CUDA graph cannot hold the effect; says why."""

    why: str


@dataclass(frozen=True)
class RestoreObject:
    """A rehearsal runs the effect, and puts back the state of the object it acts on.

    Where the object's code may not run twice, a rehearsal ends at the first such effect and
    compares when the user's Python enters the object's `method`.
    """

    method: str | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Effect:
    """An effect of a training step: what is left in a graph for it, and what it means there.

    Everything that the library does with an effect is decided by these fields. A new effect is a
    value of this class, given to `register`.

    Attributes:
        op: The operator that a trace leaves in the graph. It computes nothing; its schema names
            the tensors that the effect reads and, through `mutates_args`, those it writes. An
            argument called `subject` or `optimizer` is the number of a tracked object.
        kind: The kind of its node, or a function of the node.
        says: What the node does, for a person. A `Phrase`: runs of such nodes share a line. None:
            the node has nothing to add to the line. No function: the resources are printed.
        reads: Resources that it reads, besides the tensors it is given.
        writes: Resources that it writes, besides those tensors that its schema names.
        values_read: Tensor arguments whose values it reads; None for all of them.
        stores: Yields each slot whose `.grad` the node sets, with the new gradient or None.
        update: `always` for what runs an optimizer's `step()`, `conditional` for what may.
        region: How it cuts a run of operators that a compiler gets. `splits` it, `waits` for its
            end, is done `before` it, or is a part of it, `inside`.
        in_region: What a compiler gets in its place, if it is inside a region.
        strides_of: The argument whose strides its value has, as autograd lays out a gradient.
        cuda_graph: Whether it is part of the recorded `body`, or done by the host in the `tail`
            after it, or why neither is possible.
        may_raise: Whether it may raise an exception that depends on values.
        removable: Whether it may be left out where nobody uses its value.
        moves: How often the bytes of which argument are moved, `result` for its value. Empty:
            nothing is moved. None: it is not known.
        launches: Whether it starts at least a kernel.
        run: What a program runs for it. Its parameters are arguments of the operator by name;
            `subject` and `optimizer` are the user's objects, `tracked` is the tracked object.
        emit: Yields the Python statements of a program, where a call of `run` would be slow or is
            not all.
        prepare: Yields the statements that change its inputs ahead of the effect itself.
        rehearsal: How a rehearsal takes it back. `repeat`: it changes nothing but what is restored
            anyway. `withhold`: it is left out. `RestoreObject`: see there.
        short_window: What happens to it when a window of calls ends early: it `runs`, is
            `skipped`, or `runs after an update`.
        trace: Performs it on the fake tensors of a trace, where its operator does not.
        detaches: Whether a trace hands it detached tensors.
        hands_out: Tensor arguments that the user gets to see; their graphs must be consumed.
        objects_to_split: Returns why the node has no meaning where a batch is split, or None.
    """

    op: torch._ops.OpOverload
    kind: Kind | Callable[[Node], Kind]
    says: Callable[[Words], Phrase | str | None] | None
    reads: tuple[Resource, ...]
    writes: tuple[Resource, ...]
    region: Literal["splits", "waits", "before", "inside"]
    cuda_graph: Literal["body", "tail"] | NotRecordable
    may_raise: bool
    run: Callable[..., Any]
    rehearsal: Literal["repeat", "withhold"] | RestoreObject
    short_window: Literal["runs", "skipped", "runs after an update"]
    moves: Mapping[str, int] | None
    launches: bool
    values_read: tuple[str, ...] | None = None
    stores: Callable[[Node], Iterator[tuple[Node, Node | None]]] | None = None
    update: Literal["always", "conditional"] | None = None
    in_region: InRegion | None = None
    strides_of: str | None = None
    removable: bool = False
    emit: Callable[[Emission], Iterable[str]] | None = None
    prepare: Callable[[Emission], Iterable[str]] | None = None
    trace: Callable[..., Any] | None = None
    detaches: bool = False
    hands_out: tuple[str, ...] = ()
    objects_to_split: Callable[[Node], Objection | None] | None = None
    positions: dict[str, int] = field(init=False, repr=False)
    """Where each argument of the operator stands, by name."""

    def __post_init__(self) -> None:
        arguments = self.op._schema.arguments
        object.__setattr__(self, "positions", {a.name: i for i, a in enumerate(arguments)})

    @property
    def name(self) -> str:
        """The operator's name, with its namespace where it is not ours: `step`, `mine::beep`."""
        return str(self.op._schema.name).removeprefix("stepgraph::")

    @property
    def object_arguments(self) -> tuple[str, ...]:
        """The arguments that are numbers of tracked objects, in order."""
        return tuple(name for name in self.positions if name in ("subject", "optimizer"))

    @property
    def optimizer_argument(self) -> str:
        """The argument that says which optimizer an update is of."""
        return self.object_arguments[-1]

    @property
    def returns_value(self) -> bool:
        """Whether its node has a value."""
        return bool(self.op._schema.returns)

    def kind_of(self, node: Node) -> Kind:
        """Return the kind of a node that calls it."""
        return self.kind if isinstance(self.kind, Kind) else self.kind(node)

    def argument(self, node: Node, name: str) -> Any:
        """Return the argument called `name` of a node that calls it, or its default."""
        place = self.positions[name]
        if place < len(node.args):
            return node.args[place]
        return node.kwargs.get(name, self.op._schema.arguments[place].default_value)

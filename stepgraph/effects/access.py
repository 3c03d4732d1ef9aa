"""The vocabulary in which an effect states what it reads and writes.

An effect names resources relative to its arguments; `stepgraph.ir.resources` turns them into the
names of one node: `gradients_of("params")` into `grad:G.0.weight`, `grad:G.0.bias`;
`number_of("state", "subject")` into `state:AveragedModel(average)`. Two nodes that have a resource
in common, and of which one writes it, keep their order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resource:
    """Something whose reads and writes keep their order.

    Attributes:
        name: What it is: `grad`, `flag`, `state`, `hyper`, `log`, or a name of your own.
        argument: The argument of the effect it belongs to: tensors (a resource for each slot) or
            the number of a tracked object. None: there is one of it in the process.
        form: How the argument is read: `slot`, `object`, `hyper` (the object whose numbers are
            meant: for a schedule that is its optimizer), `update` or `alone`.
    """

    name: str
    argument: str | None
    form: str


def slots_of(name: str, argument: str) -> Resource:
    """Return a resource for each tensor in an argument, called like the tensor's slot."""
    return Resource(name, argument, "slot")


def gradients_of(argument: str) -> Resource:
    """Return the `.grad` of each tensor in an argument."""
    return slots_of("grad", argument)


def object_state(name: str, argument: str = "subject") -> Resource:
    """Return a resource that belongs to a tracked object, called like the object."""
    return Resource(name, argument, "object")


def hyper_parameters(argument: str = "subject") -> Resource:
    """Return the hyper-parameters of an optimizer, or of the optimizer that a schedule is for."""
    return Resource("hyper", argument, "hyper")


def update_of(argument: str) -> Resource:
    """Return all that an optimizer's update reads and writes besides its parameters.

    Its gradients, its hyper-parameters and its state: one state a parameter where the update is
    known to be element-wise, else one for all, and a barrier.
    """
    return Resource("update", argument, "update")


def shared(name: str) -> Resource:
    """Return a resource of which the process has one."""
    return Resource(name, None, "alone")

"""The inputs of a step graph: every placeholder is a slot with a role."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a slot holds: a parameter, a buffer, a gradient, a batch and so on."""

    PARAM = "param"
    BUFFER = "buffer"
    GRAD = "grad"
    STATE = "state"
    HYPER = "hyper"
    BATCH = "batch"


@dataclass(frozen=True)
class Slot:
    """The location of an input tensor of the step.

    Attributes:
        role: What it holds.
        name: Its display name, for example `"D.0.weight"`. A gradient has the name of its
            parameter.
    """

    role: Role
    name: str

    @property
    def resource(self) -> str:
        """The name of this slot among the resources that nodes read and write."""
        return f"{self.role.value}:{self.name}"

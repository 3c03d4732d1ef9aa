"""What the inputs of a step graph are: every placeholder stands for a slot with a role."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a slot holds for the training step."""

    PARAM = "param"
    BUFFER = "buffer"
    GRAD = "grad"
    STATE = "state"
    HYPER = "hyper"
    BATCH = "batch"


@dataclass(frozen=True)
class Slot:
    """The place a tensor of the step lives in.

    Attributes:
        role: What it holds.
        name: What people call it, for example `"D.0.weight"`. A gradient has the name of its
            parameter.
    """

    role: Role
    name: str

    @property
    def resource(self) -> str:
        """The name of this slot among the resources that nodes read and write."""
        return f"{self.role.value}:{self.name}"

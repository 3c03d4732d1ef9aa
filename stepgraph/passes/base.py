"""What a pass is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from stepgraph.ir import StepGraph


@dataclass(frozen=True)
class Pass(ABC):
    """A step graph in, a step graph out.

    Subclasses are frozen dataclasses whose fields are the options of the pass, so that `repr`
    names it in reports. A pass receives a step that verifies and returns one that does; doing
    nothing is normal. It may change its argument. Timing, verifying and recording are the
    pipeline's.

    Attributes:
        keeps_effects: Whether the step has the same effects, in an order that computes the same.
            The pipeline checks it. A pass that gives a step another meaning on purpose says False.
    """

    keeps_effects: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the rewritten step."""

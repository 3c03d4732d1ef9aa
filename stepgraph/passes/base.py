"""`Pass`, the base class of passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from stepgraph.ir import StepGraph


@dataclass(frozen=True)
class Pass(ABC):
    """A function from a step graph to a step graph.

    Subclasses are frozen dataclasses whose fields are the options of the pass, so that `repr`
    names it in reports. A pass receives a step that verifies and returns one that verifies, often
    unchanged. It may change its argument. The pipeline times, verifies and records.

    Attributes:
        keeps_effects: Whether the step keeps its effects, in an order that computes the same. The
            pipeline checks it. False for a pass that changes the effects on purpose.
    """

    keeps_effects: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the rewritten step."""

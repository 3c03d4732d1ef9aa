"""The choices of dtypes that the kernels are made, tested and measured for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stepgraph_kernels.spec import Rule


@dataclass(frozen=True)
class Layout:
    """Where an optimizer keeps what.

    Attributes:
        name: For reports and test ids.
        param: Dtype of what the update reads and writes; with a master copy, of the master.
        grad: Dtype of the gradients.
        state: Dtype of the states.
        shadow: Dtype of a copy of the parameter that is written in the same pass, or None. With a
            master copy this is the model's weight.
        averaged: Whether an average in float32 is updated in the same pass.
    """

    name: str
    param: torch.dtype = torch.float32
    grad: torch.dtype = torch.float32
    state: torch.dtype = torch.float32
    shadow: torch.dtype | None = None
    averaged: bool = False

    def bytes_per_element(self, rule: Rule, *, norm: bool = False, zero: bool = False) -> int:
        """Bytes that must move for one element.

        Args:
            rule: The rule, for its number of states.
            norm: Whether the first launch reads the gradients.
            zero: Whether the gradients are zeroed in the same pass.
        """
        shadow = self.shadow.itemsize if self.shadow is not None else 0
        if rule.factored:  # sums, size, update; the states are small; the norm is among the sums
            streams = 3 * self.param.itemsize + self.grad.itemsize * (3 + zero)
            return streams + shadow + 8 * self.averaged
        grads = self.grad.itemsize * (1 + norm + zero)
        states = 2 * self.state.itemsize * len(rule.states)
        once = 2 * self.param.itemsize + grads + states + shadow + 8 * self.averaged
        # the sweep after a measuring launch reads the parameter and the states again
        again = self.param.itemsize + self.state.itemsize * len(rule.states)
        return once if rule.measure is None else once + again


LAYOUTS = (
    Layout("float32"),
    Layout("bf16 gradients", grad=torch.bfloat16),
    Layout("fp16 gradients", grad=torch.float16),
    Layout("bf16 weights, float32 master", grad=torch.bfloat16, shadow=torch.bfloat16),
    Layout("bf16 states", state=torch.bfloat16),
    Layout("all bf16", torch.bfloat16, torch.bfloat16, torch.bfloat16),
    Layout("shadow and average", shadow=torch.bfloat16, averaged=True),
)

"""Whose parameters require gradients: switched for one optimizer, restored, nested."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

Flags = tuple[bool, ...]


class Toggles:
    """The `requires_grad` flags of all parameters that optimizers of a training have.

    Args:
        optimizers: The user's optimizers, in order.

    Attributes:
        parameters: Every parameter once, in the order of the optimizers.
        depth: How many scopes are open.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        owned = [
            {id(p) for group in optimizer.param_groups for p in group["params"]}
            for optimizer in optimizers
        ]
        every = {
            id(p): p
            for optimizer in optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        self.parameters: list[nn.Parameter] = list(every.values())
        self.owned = [[key in own for key in every] for own in owned]
        self.depth = 0
        self.original: Flags = ()

    def switch(self, index: int) -> Flags:
        """Switch off what optimizer `index` does not own; what it owns is as the user set it.

        Returns:
            The flags before, for `restore`.
        """
        before = tuple([p.requires_grad for p in self.parameters])
        if self.depth == 0:
            self.original = before
        self.depth += 1
        for parameter, own, flag in zip(  # noqa: B905  (traced)
            self.parameters, self.owned[index], self.original
        ):
            parameter.requires_grad_(own and flag)
        return before

    def restore(self, before: Flags) -> None:
        """Set the flags that `switch` returned."""
        for parameter, flag in zip(self.parameters, before):  # noqa: B905  (traced)
            parameter.requires_grad_(flag)
        self.depth -= 1

"""Switch `requires_grad` so that only one optimizer's parameters require gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

Flags = tuple[bool, ...]


class Toggles:
    """The `requires_grad` flags of the parameters of all optimizers of a training.

    Args:
        optimizers: The user's optimizers, in order.

    Attributes:
        parameters: Every parameter once, in the order of the optimizers.
        depth: Number of open scopes.
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
        """Disable gradients of the other optimizers' parameters; reset those of optimizer `index`.

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

"""An optimizer made of a reference: for the methods that torch does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from stepgraph_kernels.spec import Family


class PlainOptimizer(Optimizer):
    """Steps by the plain PyTorch reference of its family, parameter by parameter."""

    family: ClassVar[Family]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update.

        Args:
            closure: Computes the loss anew, with gradients; its loss is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if not self.state[param]:
                    self.state[param] = self.family.initial_state(param.detach(), group)
                self.family.reference(param, param.grad, self.state[param], group)
        return loss

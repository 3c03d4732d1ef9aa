"""A training whose plain step and whose compiled one are run side by side, on twins."""

import torch
from torch import nn

import stepgraph


class Training:
    """A model with its optimizer, schedule and step, compiled with `options`."""

    def __init__(self, model, *, lr, clip=None, **options):
        self.model, self.clip = model, clip
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.9)
        self.compiled = stepgraph.compile(self.step, on_fallback="error", **options)

    def step(self, x):
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean()
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step()
        return loss

    def run(self, call, batches):
        """Return the losses and gradients of every call, kept as a caller keeps them."""
        torch.manual_seed(1)
        losses, gradients = [], []
        for batch in batches:
            losses.append(call(batch))
            gradients.append([p.grad for p in self.model.parameters()])
        return losses, gradients

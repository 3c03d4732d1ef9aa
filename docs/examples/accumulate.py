"""Four batches make one update, in mixed precision, without a change to the step."""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import stepgraph

ACCUMULATE = 4

DIGITS = load_digits()
IMAGES = torch.tensor(DIGITS.data, dtype=torch.float32) / 16
LABELS = torch.tensor(DIGITS.target)


class Training:
    """A network that reads digits, with an optimizer and a schedule."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.98)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from one batch: the step is written for a single one."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()


def by_hand(training: Training, calls: int) -> list[Tensor]:
    """Train as one would write it without stepgraph; `calls` is a multiple of `ACCUMULATE`."""
    losses = []
    for call, (x, y) in enumerate(batches(calls)):
        if call % ACCUMULATE == 0:
            training.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(training.model(x), y)
        (loss / ACCUMULATE).backward()
        if (call + 1) % ACCUMULATE == 0:
            torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
            training.optimizer.step()
            training.schedule.step()
        losses.append(loss.detach())
    return losses


def with_options(training: Training, calls: int) -> tuple[stepgraph.CompiledStep, list[Tensor]]:
    """Train with options of `stepgraph.compile` and the step as it is."""
    options = {"accumulate": ACCUMULATE, "precision": "bf16-mixed", "clip_norm": 1.0}
    step = stepgraph.compile(training.step, **options)
    losses = [step(x, y) for x, y in batches(calls)]
    step.flush()  # updates from a window that has ended early; here there is none
    return step, losses


def batches(calls: int) -> list[tuple[Tensor, Tensor]]:
    """Draw small batches."""
    drawn = torch.randint(len(IMAGES), (calls, 16), generator=torch.Generator().manual_seed(1))
    return [(IMAGES[chosen], LABELS[chosen]) for chosen in drawn]


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors as small as these are not worth sharing out
    calls = 12 if "--quick" in sys.argv else 800
    training, other = Training(), Training()
    step, losses = with_options(training, calls)
    print(step.explain())
    for number, graph in enumerate(step.graphs):
        print(f"\nvariant {number}: {graph}")
    same = all(map(torch.equal, losses, by_hand(other, calls)))
    same &= all(map(torch.equal, training.model.parameters(), other.model.parameters()))
    print(f"\nloss {losses[0]:.3f} at first, {torch.stack(losses[-20:]).mean():.3f} in the end")
    print(f"{calls} calls, {calls // ACCUMULATE} updates; by hand the same bits: {same}")

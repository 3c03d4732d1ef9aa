"""The training loop of `stepgraph demo`, the same for both runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stepgraph.cli.demo.bitwise import snapshot
from stepgraph.cli.demo.gan import SimpleGAN

BATCH_SIZE = 64


@dataclass(frozen=True)
class Plan:
    """What to train on, and for how long.

    Attributes:
        images: `[n, 64]` in [-1, 1].
        labels: `[n]`; the GAN does not look at them.
        epochs: How often to go through the images; a short last batch is left out.
        seed: Of the weights, of the order of the images and of what the generator starts from.
    """

    images: Tensor
    labels: Tensor
    epochs: int
    seed: int

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.epochs * (len(self.images) // BATCH_SIZE)


class Run:
    """A training from `plan.seed` with a random state of its own, so that runs can take turns.

    Args:
        plan: What to train on.
        compiled: How the step is run: the only thing that tells one run from the other.

    Attributes:
        model: As trained so far.
        losses: What every step returned, `[2]` each: generator, discriminator.
        call_ms: Time of every step, in order.
    """

    def __init__(self, plan: Plan, *, compiled: bool) -> None:
        torch.manual_seed(plan.seed)
        self.model = SimpleGAN()
        self.losses: list[Tensor] = []
        self.call_ms: list[float] = []
        self._plan = plan
        self._step = self.model.training_step if compiled else self.model.training_step.eager
        self._random_state = torch.get_rng_state()

    def train_epoch(self) -> dict[str, float]:
        """Go through the images once and return the latest losses."""
        torch.set_rng_state(self._random_state)
        for index, batch in enumerate(_batches(self._plan)):
            started = time.perf_counter()
            logged = self._step(batch, index)
            self.call_ms.append((time.perf_counter() - started) * 1e3)
            self.losses.append(torch.stack([logged["g_loss"].detach(), logged["d_loss"].detach()]))
        self._random_state = torch.get_rng_state()
        g_loss, d_loss = self.losses[-1].tolist()
        return {"g_loss": g_loss, "d_loss": d_loss}

    def median_ms(self) -> float:
        """Return the median time of a step, without the first two, which set things up."""
        return statistics.median(self.call_ms[2:])

    def results(self) -> dict[str, Tensor]:
        """Return by name everything that the training computed and that is left to see."""
        optimizers = {"g_opt": self.model.g_opt, "d_opt": self.model.d_opt}
        own = {"losses": torch.stack(self.losses), "random state": self._random_state}
        return {**snapshot(self.model, optimizers), **own}


def _batches(plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches in a new random order."""
    order = torch.randperm(len(plan.images))
    for chosen in order.split(BATCH_SIZE):
        if len(chosen) == BATCH_SIZE:
            yield plan.images[chosen], plan.labels[chosen]

"""The training loop of `stepgraph demo`, the same for the eager and the compiled run."""

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
    """The images, the number of epochs and the seed of a training.

    Attributes:
        images: `[n, 64]` in [-1, 1].
        labels: `[n]`; not used by the GAN.
        epochs: Number of passes over the images; an incomplete last batch is dropped.
        seed: Seed of the weights, of the order of the images and of the generator's inputs.
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
    """A training from `plan.seed` with its own random state, so that two runs can take turns.

    Args:
        plan: Images, epochs and seed.
        compiled: Whether the compiled step runs; the only difference between the two runs.

    Attributes:
        model: The model in its current state.
        losses: Losses of every step, `[2]` each: generator, discriminator.
        call_ms: Duration of every step, in order.
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
        """Train for one epoch and return the losses of its last step."""
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
        """Return the median duration of a step, without the first two, which capture."""
        return statistics.median(self.call_ms[2:])

    def results(self) -> dict[str, Tensor]:
        """Return by name all results: model, optimizer states, losses and random state."""
        optimizers = {"g_opt": self.model.g_opt, "d_opt": self.model.d_opt}
        own = {"losses": torch.stack(self.losses), "random state": self._random_state}
        return {**snapshot(self.model, optimizers), **own}


def _batches(plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches in a new random order."""
    order = torch.randperm(len(plan.images))
    for chosen in order.split(BATCH_SIZE):
        if len(chosen) == BATCH_SIZE:
            yield plan.images[chosen], plan.labels[chosen]

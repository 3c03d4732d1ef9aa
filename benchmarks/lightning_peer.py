"""Lightning as a peer: automatic and manual optimization, all extras switched off."""

from __future__ import annotations

import itertools
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import lightning
import torch

from benchmarks.cases import Batch, Case, Problem
from benchmarks.peers import Runner, Skipped

_OFF = {
    "accelerator": "cpu",
    "barebones": True,
    "max_epochs": 1,
}


class Automatic(lightning.LightningModule):
    """The loss of a problem, and Lightning does the rest."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.model = problem.modules["model"]
        self.optimizer = problem.make_optimizers(fused=True)["model"]
        self.losses: list[torch.Tensor] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        assert self.problem.loss is not None
        loss = self.problem.loss(self.model, *batch)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimizer."""
        return self.optimizer


class Manual(lightning.LightningModule):
    """The step of a problem, with Lightning's optimizers and around it Lightning's loop."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.problem = problem
        self.modules_by_name = torch.nn.ModuleDict(problem.modules)
        self.by_name = problem.make_optimizers(fused=True)
        self.losses: list[torch.Tensor] = []

    def training_step(self, batch: Any, index: int) -> None:
        """Run the user's step."""
        found = self.optimizers()
        listed = found if isinstance(found, list) else [found]
        optimizers = dict(zip(self.by_name, listed, strict=True))
        loss = self.problem.step(self.problem.modules, optimizers, *batch)
        self.losses.append(loss.detach())

    def configure_optimizers(self) -> Any:
        """Return the optimizers."""
        return list(self.by_name.values())


class _Batches:
    """Batches as an iterable of one kind: Lightning takes a list for several loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Clock(lightning.Callback):
    """Notes when each batch has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def runner(problem: Problem, case: Case, *, automatic: bool) -> Runner:
    """Return a runner that lets a `Trainer` make the calls.

    The time of a call is that between the ends of two batches, so Lightning's loop is part of it.

    Raises:
        Skipped: The step is more than a loss, so automatic optimization cannot do it.
    """
    if automatic and problem.loss is None:
        raise Skipped("the step is more than a loss")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    module = Automatic(problem) if automatic else Manual(problem)
    position = 0

    def run(n: int) -> tuple[list[float], list[float]]:
        nonlocal position
        order = [problem.batches[(position + i) % len(problem.batches)] for i in range(n + 1)]
        position += n + 1
        clock = _Clock()
        module.losses.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(**_OFF)  # type: ignore[arg-type]
            trainer.callbacks.append(clock)  # type: ignore[attr-defined]
            trainer.fit(module, _Batches(order))
        seconds = [after - before for before, after in itertools.pairwise(clock.ends)]
        return seconds, [float(loss) for loss in module.losses[:n]]

    return Runner(run)

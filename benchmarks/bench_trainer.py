"""What a Trainer adds to a step: `python -m benchmarks.bench_trainer`.

A tiny model is trained with hand-written loops, eager and compiled, with stepgraph's `Trainer` and
with Lightning's. All of them are fed from one place, which gives each a block of batches in turn
and reads the clock whenever a batch is asked for: the time of a step is that between two requests,
so everything a trainer does for a batch is in it. What a trainer adds is the difference to the loop
with the same step, block by block in the same round.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import logging
import statistics
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import stepgraph
from benchmarks.harness import header
from benchmarks.peers import Skipped

BLOCK = 50
"""Batches of one entrant before the next has its turn."""

WARM_UP = 2
"""Blocks that are not timed: first call, capture, replays."""

Batch = tuple[Tensor, Tensor]
Train = Callable[[Iterable[Batch]], None]


@dataclass
class Turns:
    """The batches of one entrant; it runs in a thread of its own, while it has the baton.

    Attributes:
        rounds: Number of blocks, the warm-up included.
        baton: Held by whoever may run.
        done: Set at the end of a block.
        blocks: The times of the steps of each block, in us.
    """

    rounds: int
    baton: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    blocks: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.rounds * BLOCK + 1

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, 32, generator=generator)
        y = torch.randint(2, (8,), generator=generator)
        for _ in range(self.rounds):
            self.baton.acquire()
            times: list[float] = []
            for _ in range(BLOCK):
                start = time.perf_counter_ns()
                yield x, y
                times.append((time.perf_counter_ns() - start) / 1e3)
            self.blocks.append(times)
            self.done.release()
        self.baton.acquire()
        yield x, y  # a trainer that knows the length asks for nothing after the last


def eager_loop(batches: Iterable[Batch]) -> None:
    """Train with plain PyTorch."""
    step = _plain_step()
    for x, y in batches:
        step(x, y)


def compiled_loop(batches: Iterable[Batch]) -> None:
    """Train with a compiled step."""
    step = stepgraph.compile(_plain_step(), on_fallback="error")
    for x, y in batches:
        step(x, y)


def _plain_step() -> Callable[[Tensor, Tensor], Tensor]:
    model = nn.Linear(32, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


class Automatic:
    """The module for both trainers, but for their base class."""

    logs = 0

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(32, 2)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        x, y = batch
        loss = functional.cross_entropy(self.model(x), y)
        for _ in range(self.logs):
            self.log("loss", loss, prog_bar=True)  # type: ignore[attr-defined]
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimizer."""
        return torch.optim.SGD(self.model.parameters(), lr=0.01)


class Manual(Automatic):
    """The same step by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Update, and return the loss."""
        optimizer: Any = self.optimizers()  # type: ignore[attr-defined]
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)  # type: ignore[attr-defined]
        optimizer.step()
        return loss


def ours(kind: type, *, logs: int = 0, compile: bool = True) -> Train:
    """Return a training with stepgraph's `Trainer`."""
    step = kind.training_step  # type: ignore[attr-defined]
    if compile and kind is Manual:
        step = stepgraph.compile(step)
    world = type("Ours", (kind, stepgraph.Module), {"logs": logs, "training_step": step})

    def train(batches: Iterable[Batch]) -> None:
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
        trainer = stepgraph.Trainer(
            max_epochs=1, accelerator="cpu", enable_progress_bar=False, compile=compile, **options
        )
        trainer.fit(world(), batches)
        if compile and not all(step.explain().captured for step in trainer.steps):
            raise RuntimeError(f"{kind.__name__}: the step does not replay")

    return train


def lightnings(kind: type, *, logs: int = 0) -> Train:
    """Return a training with Lightning's `Trainer`.

    Raises:
        Skipped: It is not installed.
    """
    try:
        lightning: Any = importlib.import_module("lightning")
    except ImportError:
        raise Skipped("lightning is not installed") from None
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    world = type("Theirs", (kind, lightning.LightningModule), {"logs": logs})

    def train(batches: Iterable[Batch]) -> None:
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_epochs=1,
                accelerator="cpu",
                enable_progress_bar=False,
                enable_model_summary=False,
                **options,
            )
            trainer.fit(world(), batches)

    return train


@dataclass(frozen=True)
class Entrant:
    """Something that trains, and the loop around the same step that it is compared with."""

    make: Callable[[], Train]
    base: str | None = None


COMPILED, EAGER = "compiled loop", "eager loop"
ENTRANTS = {
    EAGER: Entrant(lambda: eager_loop),
    COMPILED: Entrant(lambda: compiled_loop),
    "Trainer, automatic": Entrant(lambda: ours(Automatic), COMPILED),
    "Trainer, automatic, one log": Entrant(lambda: ours(Automatic, logs=1), COMPILED),
    "Trainer, manual": Entrant(lambda: ours(Manual), COMPILED),
    "Trainer, manual, one log": Entrant(lambda: ours(Manual, logs=1), COMPILED),
    "Trainer, compile=False": Entrant(lambda: ours(Automatic, compile=False), EAGER),
    "Lightning, automatic": Entrant(lambda: lightnings(Automatic), EAGER),
    "Lightning, automatic, one log": Entrant(lambda: lightnings(Automatic, logs=1), EAGER),
    "Lightning, manual": Entrant(lambda: lightnings(Manual), EAGER),
    "Lightning, manual, one log": Entrant(lambda: lightnings(Manual, logs=1), EAGER),
}


def measure(
    entrants: dict[str, Entrant], rounds: int
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Let entrants train in turns.

    Args:
        entrants: By name.
        rounds: Timed blocks that each gets.

    Returns:
        For each entrant the times of the steps of each block, in us; and for each that did not run,
        why.
    """
    skipped: dict[str, str] = {}
    running: dict[str, tuple[Turns, threading.Thread]] = {}
    for name, entrant in entrants.items():
        try:
            train = entrant.make()
        except Skipped as reason:
            skipped[name] = str(reason)
        else:
            turns = Turns(WARM_UP + rounds)
            running[name] = turns, threading.Thread(target=train, args=(turns,), daemon=True)
    order = deque(running.values())
    for turn in range(WARM_UP + rounds):
        order.rotate(-1)
        if turn == WARM_UP:
            gc.collect()
            gc.freeze()  # what importing and capturing left behind is nobody's step
        for turns, thread in order:
            if turn == 0:
                thread.start()
            gc.collect()
            turns.baton.release()
            while not turns.done.acquire(timeout=1.0):
                if not thread.is_alive():
                    raise RuntimeError("an entrant has failed; its error is above")
    for turns, thread in order:
        turns.baton.release()
        thread.join()
    gc.unfreeze()
    timed = {name: turns.blocks[WARM_UP:] for name, (turns, _) in running.items()}
    return timed, skipped


def table(timed: dict[str, list[list[float]]], skipped: dict[str, str]) -> str:
    """Return, as text, the median step and what each trainer adds to its loop.

    The difference block by block, its median; and that of the 20 % quantiles over all steps, which
    other users of the machine disturb less.
    """
    rows = [f"{'':<32}{'step':>12}{'added':>12}{'at 20 %':>12}   against"]
    for name, blocks in timed.items():
        row = f"{name:<32}{statistics.median(map(statistics.median, blocks)):>9,.1f} us"
        base = ENTRANTS[name].base
        if base is not None:
            pairs = zip(blocks, timed[base], strict=True)
            added = [statistics.median(own) - statistics.median(other) for own, other in pairs]
            quiet = _low(blocks) - _low(timed[base])
            row += f"{statistics.median(added):>9,.1f} us{quiet:>9,.1f} us   {base}"
        rows.append(row)
    rows += [f"{name:<32}not measured: {why}" for name, why in skipped.items()]
    return "\n".join(rows)


def _low(blocks: list[list[float]]) -> float:
    """Return the 20 % quantile of all times."""
    return statistics.quantiles(itertools.chain.from_iterable(blocks), n=5)[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = " ".join(sys.argv[1:] if arguments is None else arguments)
    about = header(f"python -m benchmarks.bench_trainer {given}".rstrip())
    sys.stdout.write(f"{about}\n\n{table(*measure(ENTRANTS, chosen.rounds))}\n")


if __name__ == "__main__":
    main()

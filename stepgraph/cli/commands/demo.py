"""`stepgraph demo`: train a small GAN eagerly and compiled, and compare the results bit by bit."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stepgraph.cli.arguments import check_writable, count, show, writing
from stepgraph.cli.demo.bitwise import BitwiseComparison, compare
from stepgraph.cli.demo.optional_packages import optional_module
from stepgraph.cli.demo.picture import COLUMNS, ROWS, save_picture
from stepgraph.cli.demo.progress import TrainingProgress
from stepgraph.cli.demo.training import BATCH_SIZE, Plan, Run
from stepgraph.compiler import Explanation
from stepgraph.errors import ConfigurationError

_FEWEST_STEPS = 3  # the first call is eager, the second captures, the third replays
_IMAGES = 1797  # number of images in scikit-learn's digits


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `demo`."""
    parser = commands.add_parser(
        "demo",
        help="train a small GAN eagerly and compiled, in under a minute",
        description="Train a GAN on 8x8 digits twice from the same seed, eagerly and compiled; "
        "explain the compiled step, check that all weights are bit-identical, and draw "
        "real and generated digits.",
    )
    parser.add_argument("--out", type=Path, default=Path("stepgraph-demo.png"), metavar="PNG")
    parser.add_argument("--epochs", type=count, default=100, metavar="N")
    parser.add_argument(
        "--limit", type=count, default=_IMAGES, metavar="N", help="train on the first N images"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--threads",
        type=count,
        default=1,
        metavar="N",
        help="number of torch threads; one is fastest for such small tensors (default: 1)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration.

    Returns:
        0, or 1 if the step was not captured or a tensor differs.

    Raises:
        ConfigurationError: Too few steps, the picture cannot be written, or a package is missing.
    """
    check_writable("--out", arguments.out)
    optional_module("matplotlib.figure")  # fail before the training if it is missing
    plan = _plan(arguments)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"A GAN with two optimizers learns to draw digits: {plan.steps} steps eagerly and "
        f"{plan.steps} compiled, in turns, both from seed {plan.seed}."
    )
    with _threads_and_random_state(arguments.threads):
        eager, compiled, sections = _train_both(plan, console)
    with writing("--out", arguments.out):
        save_picture(arguments.out, sections)
    return _report(console, eager=eager, compiled=compiled, out=arguments.out)


def _train_both(plan: Plan, console: Console) -> tuple[Run, Run, dict[str, Tensor]]:
    """Train eagerly and compiled, in turns, so that load on the machine slows both alike.

    Returns:
        The eager run, the compiled run, and the images to draw, by title.
    """
    eager, compiled = Run(plan, compiled=False), Run(plan, compiled=True)
    noise = compiled.model.sample_z(ROWS * COLUMNS)
    sections = {"Real digits": plan.images[: ROWS * COLUMNS].view(-1, 8, 8)}
    with TrainingProgress(console, plan.epochs) as progress:
        for epoch in range(plan.epochs):
            progress.epoch_done(eager.train_epoch())
            compiled.train_epoch()
            if epoch in (0, plan.epochs - 1):
                sections[f"Generated after epoch {epoch + 1}"] = compiled.model.draw(noise)
    return eager, compiled, sections


def _report(console: Console, *, eager: Run, compiled: Run, out: Path) -> int:
    """Print the explanation, the times and the verdict; return the exit code."""
    explanation = compiled.model.training_step.explain()
    comparison = compare(eager.results(), compiled.results())
    console.print()
    show(console, explanation)
    console.print()
    console.print(_times(eager, compiled))
    console.print(f"Picture: {out}\n")
    console.print(_verdict(comparison, explanation))
    return 0 if explanation.captured and not comparison.different else 1


def _verdict(comparison: BitwiseComparison, explanation: Explanation) -> str:
    """Return one line: whether the two runs are identical, and whether the step was captured."""
    if comparison.different:
        first, count = comparison.different[0], len(comparison.different)
        return (
            f"NOT IDENTICAL: {count} of {comparison.tensors} tensors differ between the eager "
            f"and the compiled run, the first is {first}. This is a bug in stepgraph."
        )
    if not explanation.captured:
        reason = explanation.fallback_reason or "it is switched off"
        return f"NOT CAPTURED: both runs were eager, nothing was compared. Reason: {reason}."
    return (
        f"The weights are bit-identical: {comparison.tensors} tensors ({comparison.elements:,} "
        "numbers) compared: parameters, buffers, optimizer states, all losses, the random state."
    )


def _times(eager: Run, compiled: Run) -> Table:
    table = Table(title="Milliseconds per step", title_justify="left")
    table.add_column("run")
    for name in ("first call", "second call", "median of the rest"):
        table.add_column(name, justify="right")
    for name, timed in (("eager", eager), ("compiled", compiled)):
        cells = (timed.call_ms[0], timed.call_ms[1], timed.median_ms())
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    ratio = eager.median_ms() / compiled.median_ms()
    table.caption = (
        f"Compiled runs at {ratio:.2f} times the speed of eager here. Its first call is eager and "
        "its second captures. This is one run on this machine, not a benchmark."
    )
    table.caption_justify = "left"
    return table


def _plan(arguments: argparse.Namespace) -> Plan:
    digits = optional_module("sklearn.datasets").load_digits()
    images = torch.tensor(digits.data[: arguments.limit], dtype=torch.float32) / 8 - 1
    labels = torch.tensor(digits.target[: arguments.limit])
    plan = Plan(images=images, labels=labels, epochs=arguments.epochs, seed=arguments.seed)
    if plan.steps < _FEWEST_STEPS:
        raise ConfigurationError(
            "too few steps for a replay",
            at="--epochs and --limit",
            found=f"{plan.steps} steps: {plan.epochs} epochs of {len(images)} images, "
            f"{BATCH_SIZE} a step",
            why="the first call is eager and the second captures; the third is the first replay",
            hint=f"--limit {_FEWEST_STEPS * BATCH_SIZE} or more",
        )
    return plan


@contextlib.contextmanager
def _threads_and_random_state(threads: int) -> Iterator[None]:
    """Scope with `threads` torch threads; restores their number and the random state."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)

"""Who runs a case: plain PyTorch, its compilers, stepgraph, and other libraries if installed.

A peer turns a problem into a runner: a function that makes n calls of the step and returns their
times. Every peer gets a problem of its own, made from the same seed, and does the same work; the
losses in the report show it.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import stepgraph
from benchmarks.cases import Case, Problem


class Skipped(Exception):  # noqa: N818  (a decision, not an error)
    """A peer does not run a case; says why."""


@dataclass
class Runner:
    """A peer with a problem.

    Attributes:
        run: Makes n calls; returns the seconds each took and their losses.
        explain: What the peer says of itself, or None.
    """

    run: Callable[[int], tuple[list[float], list[float]]]
    explain: Callable[[], str] | None = None


def calling(problem: Problem, step: Callable[..., Any]) -> Runner:
    """Return a runner that calls `step(*batch)` in a loop, as a user would."""
    batches = problem.batches
    calls = 0

    def run(n: int) -> tuple[list[float], list[float]]:
        nonlocal calls
        seconds, losses = [], []
        for _ in range(n):
            batch = batches[calls % len(batches)]
            calls += 1
            start = time.perf_counter()
            loss = step(*batch)
            seconds.append(time.perf_counter() - start)
            losses.append(loss.item())
        return seconds, losses

    return Runner(run)


def eager(problem: Problem, case: Case, **options: Any) -> Runner:
    """Run plain PyTorch."""
    optimizers = problem.make_optimizers(**options)
    return calling(problem, functools.partial(problem.step, problem.modules, optimizers))


def compiled_models(problem: Problem, case: Case, *, with_step: bool = False) -> Runner:
    """Run `torch.compile(model)` and fused optimizers, or compiled `optimizer.step()`s."""
    modules = {name: torch.compile(module) for name, module in problem.modules.items()}
    optimizers = problem.make_optimizers(**({} if with_step else {"fused": True}))
    if with_step:
        for optimizer in optimizers.values():
            optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
    return calling(problem, functools.partial(problem.step, modules, optimizers))


def ours(problem: Problem, case: Case, *, backend: str, **options: Any) -> Runner:
    """Run the step under `stepgraph.compile`."""
    modules, optimizers, plain = problem.modules, problem.make_optimizers(**options), problem.step

    def step(*batch: Any) -> Any:
        return plain(modules, optimizers, *batch)

    compiled = stepgraph.compile(step, backend=backend, on_fallback="error")
    runner = calling(problem, compiled)
    runner.explain = lambda: str(compiled.explain())
    return runner


def of_library(problem: Problem, case: Case, *, module: str, needs: str, **options: Any) -> Runner:
    """Run a peer from another library, if it is installed.

    Raises:
        Skipped: It is not, or the case is not written for it.
    """
    try:
        importlib.import_module(needs)
    except ImportError as error:
        raise Skipped(f"{needs} is not installed") from error
    runner: Runner = importlib.import_module(module).runner(problem, case, **options)
    return runner


PEERS: Mapping[str, Callable[[Problem, Case], Runner]] = {
    "eager-foreach": functools.partial(eager, foreach=True),
    "eager-fused": functools.partial(eager, fused=True),
    "torch.compile": compiled_models,
    "torch.compile+step": functools.partial(compiled_models, with_step=True),
    "stepgraph-eager": functools.partial(ours, backend="eager", fused=True),
    "stepgraph-inductor": functools.partial(ours, backend="inductor"),
    "lightning": functools.partial(
        of_library, module="benchmarks.lightning_peer", needs="lightning", automatic=True
    ),
    "lightning-manual": functools.partial(
        of_library, module="benchmarks.lightning_peer", needs="lightning", automatic=False
    ),
    "jax": functools.partial(of_library, module="benchmarks.jax_peer", needs="optax"),
}
"""All peers, by name. `eager-fused` is what the others are compared with."""

BASE = "eager-fused"
QUICK = ("eager-foreach", "eager-fused", "torch.compile", "stepgraph-eager", "stepgraph-inductor")
"""The peers of the quick mode, besides those of other libraries that are installed."""

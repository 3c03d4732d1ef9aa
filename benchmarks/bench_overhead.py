"""Host time of a replay beside its statements: `python -m benchmarks.bench_overhead`.

A call of a compiled step finds its variant, checks the guards, hands the slots to the program, runs
the program's statements and hands back the results. The clock is read inside each call, where the
statements begin and where they end: what comes before is guards and slots, what comes after is
results. So both parts belong to the same call as the statements, and a slow phase of the machine
meets all alike. Models of different sizes take turns.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import stepgraph
from benchmarks.harness import header, line
from stepgraph.runtime import Program

WARM_UP = 5
"""Calls of a step before it is timed: the first, the capture, replays."""

BLOCK = 20
"""Calls of one size before the next has its turn."""


@dataclass
class Clock:
    """When the statements of the latest call began and ended, in nanoseconds."""

    began: int = 0
    ended: int = 0


@dataclass
class Sized:
    """A compiled step over some number of parameters, and the times of its calls in us."""

    parameters: int
    step: Callable[[Tensor], Any]
    clock: Clock
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    statements: list[float] = field(default_factory=list)

    def call(self, x: Tensor) -> None:
        """Make one call and note its times."""
        start = time.perf_counter_ns()
        self.step(x)
        end = time.perf_counter_ns()
        self.before.append((self.clock.began - start) / 1e3)
        self.after.append((end - self.clock.ended) / 1e3)
        self.statements.append((self.clock.ended - self.clock.began) / 1e3)

    def median(self, *parts: str) -> float:
        """Return the median over the calls of the sum of some parts."""
        columns = [getattr(self, part) for part in parts]
        return statistics.median(map(sum, zip(*columns, strict=True)))


@contextmanager
def timed_statements(clock: Clock) -> Iterator[None]:
    """Let the programs made inside read the clock around their statements."""
    plain = Program.__init__

    def init(self: Program, function: Callable[..., Any], **facts: Any) -> None:
        @functools.wraps(function)
        def timed(*args: Any) -> Any:
            clock.began = time.perf_counter_ns()
            result = function(*args)
            clock.ended = time.perf_counter_ns()
            return result

        plain(self, timed, **facts)

    with mock.patch.object(Program, "__init__", init):
        yield


def sized(parameters: int) -> Sized:
    """Compile a step over that many parameters of four elements each, and warm it up."""
    weights = nn.ParameterList(nn.Parameter(torch.randn(4)) for _ in range(parameters))
    optimizer = torch.optim.SGD(weights.parameters(), lr=1e-3)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (torch.stack(list(weights)) * x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    clock = Clock()
    compiled = stepgraph.compile(step, backend="eager", on_fallback="error")
    with timed_statements(clock):
        for _ in range(WARM_UP):
            compiled(torch.randn(4))
    if not compiled.explain().captured or not clock.ended:
        raise RuntimeError(f"{parameters} parameters: the step does not replay")
    return Sized(parameters, compiled, clock)


def measure(sizes: Sequence[int], rounds: int) -> list[Sized]:
    """Time steps over each number of parameters, taking turns."""
    steps = [sized(parameters) for parameters in sizes]
    x = torch.randn(4)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for step in steps[turn % len(steps) :] + steps[: turn % len(steps)]:
                for _ in range(BLOCK):
                    step.call(x)
    finally:
        gc.enable()
    return steps


def table(steps: Sequence[Sized]) -> str:
    """Return the medians as text, and the line through them."""
    titles = ("parameters", "statements", "guards, slots", "results", "overhead")
    rows = ["".join(f"{title:>15}" for title in titles)]
    for step in steps:
        parts = [("statements",), ("before",), ("after",), ("before", "after")]
        times = "".join(f"{step.median(*names):>12,.1f} us" for names in parts)
        rows.append(f"{step.parameters:>15}{times}")
    xs = [step.parameters for step in steps]
    for name, parts in [("overhead", ("before", "after")), ("guards, slots", ("before",))]:
        a, b = line(xs, [step.median(*parts) for step in steps])
        rows.append(f"{name:<15}{a:.1f} us + {b:.3f} us per parameter")
    rows.append(f"{'budget':<15}20 us + 1.0 us per parameter, aim 0.5")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100, 300, 1000])
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = " ".join(sys.argv[1:] if arguments is None else arguments)
    about = header(f"python -m benchmarks.bench_overhead {given}".rstrip())
    sys.stdout.write(f"{about}\n\n{table(measure(chosen.sizes, chosen.rounds))}\n")


if __name__ == "__main__":
    main()

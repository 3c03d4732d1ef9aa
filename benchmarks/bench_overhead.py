"""Host time of a replay beside its statements: `python -m benchmarks.bench_overhead`.

A call of a compiled step binds its arguments, checks Dynamo's guards, looks itself at what these
leave out, hands the slots to the program, runs the program's statements and hands back the results.
The clock is read inside each call, where one part ends and the next begins. So all parts belong to
the same call as the statements, and a slow phase of the machine meets all alike. Models of
different sizes take turns, and so does one small eager operator: its time says how fast the
machine is right now.
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
from stepgraph.compiler.variants.variant import Variant
from stepgraph.runtime import Program
from stepgraph.torch_private.dynamo import guards

WARM_UP = 5
"""Calls of a step before it is timed: the first, the capture, replays."""

BLOCK = 20
"""Calls of one size before the next has its turn."""


PARTS = ("dynamo", "ours", "slots", "statements", "results")
"""Dynamo's guards; ours; arguments on the way in; the program; results on the way out."""


@dataclass
class Clock:
    """When the latest call came to its stations, in nanoseconds."""

    guarded: int = 0  # Dynamo's guards begin
    looked: int = 0  # and end: our own looks begin
    matched: int = 0  # and end
    began: int = 0  # the statements
    ended: int = 0

    def parts(self, start: int, end: int) -> dict[str, float]:
        """Return the time of each part of a call in us."""
        parts = {
            "dynamo": self.looked - self.guarded,
            "ours": self.matched - self.looked,
            "slots": self.guarded - start + self.began - self.matched,
            "statements": self.ended - self.began,
            "results": end - self.ended,
        }
        return {name: nanoseconds / 1e3 for name, nanoseconds in parts.items()}


@dataclass
class Sized:
    """A compiled step over some number of parameters, and the times of its calls in us."""

    parameters: int
    step: Callable[[Tensor], Any]
    clock: Clock
    calls: list[dict[str, float]] = field(default_factory=list)

    def call(self, x: Tensor) -> None:
        """Make one call and note its times."""
        start = time.perf_counter_ns()
        _result = self.step(x)  # kept until the clock is read: freeing it is its owner's time
        end = time.perf_counter_ns()
        self.calls.append(self.clock.parts(start, end))

    def median(self, *parts: str) -> float:
        """Return the median over the calls of the sum of some parts."""
        return statistics.median(sum(call[part] for part in parts) for call in self.calls)


@contextmanager
def timed(clock: Clock) -> Iterator[None]:
    """Let the steps captured inside read the clock at their stations."""
    init, check, matches = Program.__init__, guards._check, Variant.matches

    def timed_init(self: Program, function: Callable[..., Any], **facts: Any) -> None:
        @functools.wraps(function)
        def statements(*args: Any) -> Any:
            clock.began = time.perf_counter_ns()
            result = function(*args)
            clock.ended = time.perf_counter_ns()
            return result

        init(self, statements, **facts)

    def timed_check(found: Callable[[Any], bool], together: Any) -> Callable[[Any], bool]:
        def dynamo(scope: Any) -> bool:
            clock.guarded = time.perf_counter_ns()
            holds = found(scope)
            clock.looked = time.perf_counter_ns()
            return holds

        return check(dynamo, together)

    def timed_matches(self: Variant, scope: Any) -> bool:
        found = matches(self, scope)
        clock.matched = time.perf_counter_ns()
        return found

    with (
        mock.patch.object(Program, "__init__", timed_init),
        mock.patch.object(guards, "_check", timed_check),
        mock.patch.object(Variant, "matches", timed_matches),
    ):
        yield


def sized(parameters: int, clock: Clock) -> Sized:
    """Compile a step over that many parameters of four elements each, and warm it up.

    To be called inside `timed(clock)`.
    """
    weights = nn.ParameterList(nn.Parameter(torch.randn(4)) for _ in range(parameters))
    optimizer = torch.optim.SGD(weights.parameters(), lr=1e-3)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (torch.stack(list(weights)) * x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    compiled = stepgraph.compile(step, backend="eager", on_fallback="error")
    for _ in range(WARM_UP):
        compiled(torch.randn(4))
    if not compiled.explain().captured or not clock.ended:
        raise RuntimeError(f"{parameters} parameters: the step does not replay")
    return Sized(parameters, compiled, clock)


def operator_us(x: Tensor) -> float:
    """Return the time of a small eager operator in a row of them, in us."""
    start = time.perf_counter_ns()
    for _ in range(BLOCK):
        torch.add(x, x)
    return (time.perf_counter_ns() - start) / BLOCK / 1e3


def measure(sizes: Sequence[int], rounds: int) -> tuple[list[Sized], float]:
    """Time steps over each number of parameters, taking turns.

    Returns:
        The steps, and the median time of an eager operator in us.
    """
    clock, operators = Clock(), []
    with timed(clock):
        steps = [sized(parameters, clock) for parameters in sizes]
        x = torch.randn(4)
        gc.collect()
        gc.disable()
        try:
            for turn in range(rounds):
                for step in steps[turn % len(steps) :] + steps[: turn % len(steps)]:
                    for _ in range(BLOCK):
                        step.call(x)
                operators.append(operator_us(x))
        finally:
            gc.enable()
    return steps, statistics.median(operators)


def table(steps: Sequence[Sized], operator: float) -> str:
    """Return the medians as text, and the line through them.

    Args:
        steps: The steps after `measure`.
        operator: Time of an eager operator in us.
    """
    overhead = tuple(part for part in PARTS if part != "statements")
    titles = ("parameters", "statements", "Dynamo's guards", "our looks", "slots", "results")
    rows = ["".join(f"{title:>16}" for title in (*titles, "overhead"))]
    columns = [("statements",), ("dynamo",), ("ours",), ("slots",), ("results",), overhead]
    for step in steps:
        times = "".join(f"{step.median(*names):>13,.1f} us" for names in columns)
        rows.append(f"{step.parameters:>16}{times}")
    xs = [step.parameters for step in steps]
    lines = {"overhead": overhead, "Dynamo's guards": ("dynamo",), "our looks": ("ours",)}
    for name, parts in lines.items():
        a, b = line(xs, [step.median(*parts) for step in steps])
        rows.append(f"{name:<16}{a:.1f} us + {b:.3f} us per parameter")
    rows.append(f"{'budget':<16}20 us + 1.0 us per parameter, aim 0.5")
    rows.append(f"{'torch.add':<16}{operator:.1f} us for 4 elements, eagerly, in a row")
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
    sys.stdout.write(f"{about}\n\n{table(*measure(chosen.sizes, chosen.rounds))}\n")


if __name__ == "__main__":
    main()

"""Interleaved timing of peers on one case, and the memory of one step."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.profiler import profile

from benchmarks.cases import Case
from benchmarks.peers import BASE, PEERS, Runner, Skipped

WARM_UP = 6
"""Calls before anything is timed: first call, capture, trials, recompilation for another size."""

LOSSES = 4
"""Losses of the first calls that go into the report."""


@dataclass(frozen=True)
class Timing:
    """What one peer did on one case.

    Attributes:
        median_us: Median time of a call.
        low_us: 20 % quantile.
        high_us: 80 % quantile.
        ratio: How often faster than the base, pair by pair; the median over the rounds.
        ratio_range: The lowest and the highest of those.
        first_calls_s: Time of the calls before timing began, compilation included.
        peak_bytes: What one call allocates at most beyond what was there; None if unknown.
        losses: Of the first calls.
        calls: How many were timed.
        said: What the peer says of itself, or None.
    """

    median_us: float
    low_us: float
    high_us: float
    ratio: float
    ratio_range: tuple[float, float]
    first_calls_s: float
    peak_bytes: int | None
    losses: tuple[float, ...]
    calls: int
    said: str | None = None


@dataclass
class _Entrant:
    """A peer while it is measured: the times of its calls, a list for every round."""

    runner: Runner
    first_calls_s: float
    losses: tuple[float, ...]
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [second for times in self.rounds for second in times]


def measure(
    case: Case, peers: Sequence[str], *, seconds: float, rounds: int
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time peers on a case, taking turns.

    Every round gives each peer a block of calls; the order is turned from round to round, so that
    a slow phase of the machine meets everybody. A ratio compares two blocks of one round.

    Args:
        case: The case.
        peers: Names; the base is added if it is missing.
        seconds: Time to spend on the timed calls, all peers together.
        rounds: Number of rounds.

    Returns:
        The timings by peer, and for each peer that did not run, why.
    """
    torch.compiler.reset()  # else sizes of the case before make those of this one symbolic
    names = list(dict.fromkeys([BASE, *peers]))
    entrants, skipped = _enter(case, names)
    if BASE not in entrants:
        raise RuntimeError(f"{BASE} did not run {case.name}: {skipped[BASE]}")
    block = _block(entrants, case, seconds=seconds, rounds=rounds)
    for turn in range(rounds):
        order = list(entrants.values())
        for entrant in order[turn % len(order) :] + order[: turn % len(order)]:
            gc.collect()
            times, _ = entrant.runner.run(_whole_windows(block, case))
            entrant.rounds.append(_window_means(times, case.accumulate))
    base = entrants[BASE]
    return {name: _timing(entrant, base) for name, entrant in entrants.items()}, skipped


def _enter(case: Case, names: Sequence[str]) -> tuple[dict[str, _Entrant], dict[str, str]]:
    entrants: dict[str, _Entrant] = {}
    skipped: dict[str, str] = {}
    for name in names:
        start = time.perf_counter()
        try:
            runner = PEERS[name](case.make(), case)
            _, losses = runner.run(_whole_windows(WARM_UP, case))
        except Skipped as reason:
            skipped[name] = str(reason)
        except Exception as error:  # a peer that fails must not end the others' run
            skipped[name] = f"fails: {type(error).__name__}: {str(error).splitlines()[:1]}"
        else:
            taken = time.perf_counter() - start
            entrants[name] = _Entrant(runner, taken, tuple(losses[:LOSSES]))
    return entrants, skipped


def _whole_windows(calls: int, case: Case) -> int:
    """Return a number of calls of at least `calls`: every window of the case complete, twice."""
    window = case.accumulate
    at_least = max(calls, 4 * window if window > 1 else 1)
    return -(-at_least // window) * window


def _window_means(times: Sequence[float], window: int) -> list[float]:
    """Return the mean time of a call in each window: calls with and without an update differ."""
    starts = range(0, len(times) - window + 1, window)
    return [sum(times[i : i + window]) / window for i in starts]


def _block(entrants: Mapping[str, _Entrant], case: Case, *, seconds: float, rounds: int) -> int:
    """Return how many calls a block has, so that all blocks together take `seconds`."""
    one_turn = 0.0
    for entrant in entrants.values():
        times, _ = entrant.runner.run(_whole_windows(3, case))
        one_turn += statistics.median(times)
    return max(1, min(500, int(seconds / (rounds * one_turn))))


def _timing(entrant: _Entrant, base: _Entrant) -> Timing:
    pairs = zip(base.rounds, entrant.rounds, strict=True)
    ratios = [statistics.median(b) / statistics.median(own) for b, own in pairs]
    low, median, high = _quantiles(entrant.seconds)
    return Timing(
        median_us=median * 1e6,
        low_us=low * 1e6,
        high_us=high * 1e6,
        ratio=statistics.median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        first_calls_s=entrant.first_calls_s,
        peak_bytes=peak_bytes(entrant.runner),
        losses=entrant.losses,
        calls=len(entrant.seconds),
        said=entrant.runner.explain() if entrant.runner.explain else None,
    )


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 20 %, 50 % and 80 % quantiles."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5)
    return fifths[0], statistics.median(values), fifths[-1]


def peak_bytes(runner: Runner) -> int | None:
    """Return how much memory of torch's CPU allocator one call holds at most beyond its start.

    None where nothing was seen: the peer does not use torch's allocator.
    """
    with profile(profile_memory=True, use_kineto=True) as recorded:
        runner.run(1)
    events: Any = recorded.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, n_bytes in sorted(changes, key=lambda change: change[0]):
        held += n_bytes
        peak = max(peak, held)
    return peak or None

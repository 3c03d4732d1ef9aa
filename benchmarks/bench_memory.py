"""Peak memory of a step, eager beside compiled: `python -m benchmarks.bench_memory`.

Each step is called a few times; then the memory that one call allocates is followed in torch's
allocator, and compared with what the passes computed. Counted is what a call holds beyond what was
there before it: activations, gradients, temporaries; not parameters and optimizer state.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import stepgraph
from benchmarks.harness import header
from benchmarks.measure import peak_bytes
from benchmarks.models import GPT

VOCABULARY = 256
TOKENS = 64
CALLS = 4
"""Calls before one is followed: the first, the capture, replays."""


@dataclass
class Case:
    """A step of a GPT, made anew for every run.

    Attributes:
        title: What is special about it.
        step: Takes the model, its optimizer and a batch `[batch, tokens + 1]`; returns the loss.
        options: What `stepgraph.compile` is told.
    """

    title: str
    step: Callable[[nn.Module, torch.optim.Optimizer, Tensor], Tensor]
    options: dict[str, Any]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the mean cross entropy of the next tokens: `[]`."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> Tensor:
    """Clear the gradients at the end."""
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def cleared_first(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> Tensor:
    """Clear the gradients of the call before."""
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    return loss


def clipped(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> Tensor:
    """Clip by the norm of all gradients."""
    loss = loss_of(model, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def in_parts(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> Tensor:
    """Add up the losses of four parts of the batch, as people do who forget to accumulate."""
    loss = sum((loss_of(model, part) for part in batch.chunk(4)), torch.zeros(())) / 4
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


CASES = {
    "plain": Case("cleared at the end", plain, {}),
    "kept": Case("cleared first", cleared_first, {}),
    "dropped": Case("cleared first, keep_grads=False", cleared_first, {"keep_grads": False}),
    "clipped": Case("clipped by the norm", clipped, {}),
    "parts": Case("losses of four parts added up", in_parts, {}),
}


class Run:
    """Calls of a step, eager or compiled, on the same batches."""

    def __init__(self, case: Case, asked: argparse.Namespace, *, compiled: bool) -> None:
        torch.manual_seed(0)
        self.model = GPT(
            vocabulary=VOCABULARY,
            dim=asked.dim,
            layers=asked.layers,
            heads=asked.dim // 64,
            tokens=TOKENS,
        )
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batches = [
            torch.randint(VOCABULARY, (asked.batch, TOKENS + 1)) for _ in range(CALLS + 1)
        ]

        def step(batch: Tensor) -> Tensor:
            return case.step(self.model, optimizer, batch)

        self.step: Any = step
        if compiled:
            self.step = stepgraph.compile(step, on_fallback="error", **case.options)
        self.losses = [self.step(batch).item() for batch in self.batches[:CALLS]]

    def run(self, calls: int) -> None:
        """Make calls; what `peak_bytes` wants."""
        for _ in range(calls):
            self.step(self.batches[-1])


def measured(name: str, asked: argparse.Namespace) -> Iterator[str]:
    """Yield the lines about a case."""
    case = CASES[name]
    eager = Run(case, asked, compiled=False)
    gradients = sum(p.numel() * p.element_size() for p in eager.model.parameters())
    before, losses = peak_bytes(eager) or 0, eager.losses  # type: ignore[arg-type]
    del eager
    compiled = Run(case, asked, compiled=True)
    after = peak_bytes(compiled) or 0  # type: ignore[arg-type]
    same = "the same losses" if losses == compiled.losses else f"{losses} {compiled.losses}"
    yield (
        f"{case.title}: {before / 2**20:.0f} -> {after / 2**20:.0f} MiB, less by "
        f"{(before - after) / gradients:.2f} of the gradients ({gradients / 2**20:.0f} MiB); {same}"
    )
    for record in compiled.step.explain().variants[-1].passes:
        for said in record.did:
            computed = (record.peak_bytes_before / 2**20, record.peak_bytes_after / 2**20)
            yield f"    {said}; computed {computed[0]:.0f} -> {computed[1]:.0f} MiB"


def main(arguments: list[str] | None = None) -> int:
    """Print the peaks of all cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_memory")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--case", action="append", choices=CASES)
    asked = parser.parse_args(arguments)
    sizes = f"--layers {asked.layers} --dim {asked.dim} --batch {asked.batch}"
    print(header(f"python -m benchmarks.bench_memory {sizes}"))
    for name in asked.case or CASES:
        print()
        print("\n".join(measured(name, asked)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whole training steps on this device: what they compute, how long they take, what they hold.

Every implementation trains the same model on the same batches; losses that a caller kept and the
parameters at the end are compared with the plain step. A failure is a row of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import stepgraph
from benchmarks.gpu.clock import milliseconds
from benchmarks.models import GPT, mlp

COMPARED = 12
"""Calls whose losses are kept: first call, capture, trials, warm-up, recording, replays."""

ALLOWED = 2e-3
"""Relative difference, in the 2-norm, that rounding and the order of sums may make."""

BASE = "eager, fused AdamW"


@dataclass(frozen=True)
class Case:
    """A model with batches.

    Attributes:
        name: What it is called.
        model: Makes the model.
        batch: Makes a batch on a device.
        clip: Norm to clip gradients to, or None.
        options: What `stepgraph.compile` is told besides the backend.
    """

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.device], tuple[Tensor, Tensor]]
    clip: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


def cases(device: torch.device) -> list[Case]:
    """Return the cases: tiny ones in the interpreter."""
    if device.type != "cuda":
        return [Case("MLP", lambda: mlp((8, 8, 4)), _vectors(4, 8, 4), clip=0.1)]
    small = {"vocabulary": 4096, "dim": 384, "layers": 6, "heads": 6, "tokens": 256}
    return [
        Case("MLP 3x1024, batch 64", lambda: mlp((1024,) * 4), _vectors(64, 1024, 1024), clip=1.0),
        Case("GPT 6x384, 8x256 tokens", lambda: GPT(**small), _tokens(8, 256, 4096), clip=1.0),
        Case(
            "the same, gradients not kept",
            lambda: GPT(**small),
            _tokens(8, 256, 4096),
            options={"keep_grads": False},
        ),
    ]


class Trainee:
    """One implementation at work: a model, its optimizer, a schedule, and a step to call."""

    def __init__(self, case: Case, implementation: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = case.model().to(device)
        fused = implementation == BASE or implementation.startswith("torch.compile")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=fused or None)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 5, gamma=0.9)
        forward = torch.compile(self.model) if "torch.compile" in implementation else self.model

        def step(inputs: Tensor, targets: Tensor) -> Tensor:
            scores = forward(inputs)
            loss = F.cross_entropy(scores.flatten(0, -2), targets.flatten())
            loss.backward()
            if case.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), case.clip)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            return loss

        self.step: Any = step
        if implementation.startswith("stepgraph"):
            backend = "eager" if implementation == "stepgraph, eager" else "inductor"
            options = {**case.options, "backend": backend, "on_fallback": "silent"}
            self.step = stepgraph.compile(step, **options)

    def said(self) -> str:
        """Return what a compiled step says of itself."""
        explain = getattr(self.step, "explain", None)
        return "" if explain is None else str(explain())


def steps(device: torch.device, late: Callable[[], bool]) -> Iterator[dict[str, object]]:
    """Check and time every implementation of every case; each row has what went wrong, if so."""
    for case in cases(device):
        base: tuple[list[Tensor], list[Tensor]] | None = None
        for implementation in _implementations(device):
            row: dict[str, object] = {"case": case.name, "implementation": implementation}
            if late():
                yield {**row, "skipped": "out of time"}
                continue
            try:
                with _graphs(implementation.endswith("graph")):
                    measured, results = _measured(case, implementation, device)
                base = base or results
                yield {**row, **measured, "difference": _difference(results, base)}
            except Exception as error:  # one that fails must not hide the others
                yield {**row, "failed": f"{type(error).__name__}: {error}"[:2000]}
            if device.type == "cuda":
                torch.cuda.empty_cache()


def wrong(row: dict[str, object]) -> str:
    """Return what is wrong with a row, or nothing."""
    difference = row.get("difference")
    if isinstance(difference, float) and not difference <= ALLOWED:
        return f"{row['case']}, {row['implementation']}: results differ by {difference}"
    return ""


def _implementations(device: torch.device) -> Sequence[str]:
    if device.type != "cuda":
        return (BASE, "stepgraph, eager")
    return (
        BASE,
        "stepgraph, eager",
        "stepgraph, inductor",
        "stepgraph, inductor, CUDA graph",
        "torch.compile(model), fused AdamW",
    )


def _measured(
    case: Case, implementation: str, device: torch.device
) -> tuple[dict[str, object], tuple[list[Tensor], list[Tensor]]]:
    trainee = Trainee(case, implementation, device)
    batches = [case.batch(device) for _ in range(4)]
    losses = [trainee.step(*batches[i % 4]).detach() for i in range(COMPARED)]
    params = [p.detach().clone() for p in trainee.model.parameters()]
    on_gpu = device.type == "cuda"
    took = milliseconds(
        lambda: trainee.step(*batches[0]), device, warmup=5, repeats=30 if on_gpu else 2
    )
    peak = _peak_bytes(lambda: trainee.step(*batches[1])) if on_gpu else None
    row = {
        **took,
        "peak_bytes": peak,
        "losses": [round(float(loss), 6) for loss in losses],
        "said": trainee.said(),
    }
    return row, (losses, params)


def _peak_bytes(work: Callable[[], object]) -> int:
    """Return what one call allocates at most beyond what was there."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _difference(
    mine: tuple[list[Tensor], list[Tensor]], own: tuple[list[Tensor], list[Tensor]]
) -> float:
    """Return the largest relative difference of a loss or a parameter, in the 2-norm."""
    pairs = zip([*mine[0], *mine[1]], [*own[0], *own[1]], strict=True)
    ratios = [float((a - b).double().norm() / b.double().norm().clamp(min=1e-12)) for a, b in pairs]
    return max(ratios)


@contextmanager
def _graphs(allowed: bool) -> Iterator[None]:
    """Scope in which compiled steps may be recorded as CUDA graphs, or not."""
    before = os.environ.get("STEPGRAPH_CUDA_GRAPHS")
    os.environ["STEPGRAPH_CUDA_GRAPHS"] = "1" if allowed else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["STEPGRAPH_CUDA_GRAPHS"]
        else:
            os.environ["STEPGRAPH_CUDA_GRAPHS"] = before


def _vectors(
    batch: int, width: int, classes: int
) -> Callable[[torch.device], tuple[Tensor, Tensor]]:
    def draw(device: torch.device) -> tuple[Tensor, Tensor]:
        inputs, targets = torch.randn(batch, width), torch.randint(classes, (batch,))
        return inputs.to(device), targets.to(device)

    return draw


def _tokens(
    batch: int, tokens: int, vocabulary: int
) -> Callable[[torch.device], tuple[Tensor, Tensor]]:
    def draw(device: torch.device) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(vocabulary, (batch, tokens + 1)).to(device)
        return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()

    return draw

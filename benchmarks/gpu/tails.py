"""The same tail of a training step, four ways: ours, foreach, fused, compiled.

    (a) step                              (c) unscale + finite check + clip + step + new scale
    (b) clip + step                       (d) (c) + bf16 copy + moving average + zeroed gradients

AdamW in float32. Gradients keep their values (scale 1), so every repeat does the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepgraph_kernels.adam import ADAM
from stepgraph_kernels.catalogue import Variant, update_class
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.layouts import LAYOUTS
from stepgraph_kernels.spec import Target, Tuning

TAILS = ("step", "clip+step", "scaler+clip+step", "scaler+clip+step+cast+ema+zero")
BYTES_PER_ELEMENT = {TAILS[0]: 28, TAILS[1]: 32, TAILS[2]: 32, TAILS[3]: 46}
AVERAGE_WEIGHT = 0.001
MAX_NORM = 1.0


@dataclass(frozen=True)
class Model:
    """The operands that all implementations share; one at a time runs."""

    params: list[Tensor]
    shadows: list[Tensor]
    averages: list[Tensor]

    @staticmethod
    def of(elements: int, tensors: int, device: torch.device) -> Model:
        """Make `tensors` parameters of nearly equal, odd sizes, with gradients."""
        sizes = [elements // tensors + (i % 7) - 3 for i in range(tensors)]
        params = [torch.zeros(n, device=device).normal_().requires_grad_() for n in sizes]
        for param in params:
            param.grad = torch.zeros_like(param).normal_()
        return Model(
            params=params,
            shadows=[torch.empty_like(p, dtype=torch.bfloat16) for p in params],
            averages=[p.detach().clone() for p in params],
        )

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(param.numel() for param in self.params)

    @property
    def grads(self) -> list[Tensor]:
        """The gradients."""
        return [param.grad for param in self.params if param.grad is not None]


def ours(
    model: Model, tail: str, tuning: Tuning, *, low_precision: bool = False
) -> Callable[[], None]:
    """The whole tail in two launches.

    Args:
        model: The operands.
        tail: One of `TAILS`.
        tuning: Speed choices.
        low_precision: bf16 gradients, as beside a float32 master copy.
    """
    full, scaled = tail == TAILS[3], tail in TAILS[2:]
    group = torch.optim.AdamW([torch.zeros(1)], lr=1e-4).param_groups[0]
    device = model.params[0].device
    grads = [g.bfloat16() for g in model.grads] if low_precision else model.grads
    targets = [
        Target(
            param=param.detach(),
            grad=grad,
            state=ADAM.initial_state(param.detach(), group),
            shadow=shadow if full or low_precision else None,
            average=average if full else None,
            name=f"parameter {index}",
        )
        for index, (param, grad, shadow, average) in enumerate(
            zip(model.params, grads, model.shadows, model.averages, strict=True)
        )
    ]
    update = MultiTensorUpdate(
        ADAM,
        targets,
        [group],
        clip=tail != TAILS[0],
        check_finite=scaled,
        grads="zero" if full else "keep",
        average_weight=AVERAGE_WEIGHT,
        tuning=tuning,
    )
    update.set_max_norm(MAX_NORM)
    if not scaled:
        return update.launch
    scale = torch.ones((), device=device)
    growth = torch.zeros((), dtype=torch.int32, device=device)

    def run() -> None:
        update.launch(scale=scale)
        torch._amp_update_scale_(scale, growth, update.skipped, 2.0, 0.5, 10**9)

    return run


def clipped_step(
    variant: Variant, shapes: Sequence[Sequence[int]], tuning: Tuning, device: torch.device
) -> tuple[Callable[[], None], int]:
    """Clip + step of any kernel in the catalogue.

    Returns:
        The work, and the bytes that it must move.
    """
    group, family = variant.group(), variant.family
    params = [torch.zeros(*shape, device=device).normal_() for shape in shapes]
    targets = [
        Target(p, torch.zeros_like(p).normal_(), family.initial_state(p, group)) for p in params
    ]
    update = update_class(family)(family, targets, [group], clip=True, tuning=tuning)
    update.set_max_norm(MAX_NORM)
    each = LAYOUTS[0].bytes_per_element(family.rule(group), norm=True)
    return update.launch, each * sum(p.numel() for p in params)


def torch_optimizer(model: Model, kind: str) -> torch.optim.Optimizer:
    """AdamW as `foreach`, `fused`, or `compiled` (`torch.compile(optimizer.step)`)."""
    fused = kind == "fused"
    optimizer = torch.optim.AdamW(model.params, lr=1e-4, fused=fused, foreach=not fused)
    if kind == "compiled":
        torch.compiler.reset()  # or the recompile limit counts the models before
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
    return optimizer


def theirs(model: Model, tail: str, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """The same tail by torch's own parts."""
    device = model.params[0].device
    scaler = torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=10**9)
    scaler.scale(torch.ones(1, device=device))  # makes the scale

    def run() -> None:
        if tail in TAILS[2:]:
            scaler.unscale_(optimizer)
        if tail != TAILS[0]:
            torch.nn.utils.clip_grad_norm_(model.params, MAX_NORM, foreach=True)
        if tail in TAILS[2:]:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if tail == TAILS[3]:
            with torch.no_grad():
                torch._foreach_copy_(model.shadows, model.params)
                torch._foreach_lerp_(model.averages, model.params, AVERAGE_WEIGHT)
                torch._foreach_zero_(model.grads)

    return run


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """The same work as one CUDA graph."""
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay

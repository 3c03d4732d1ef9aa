"""Learning rate schedules: stand-ins for a trace, methods for an eager call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override

from stepgraph.capture.objects.base import TraceContext, TrackedObject
from stepgraph.capture.objects.table import entry_name, number_of
from stepgraph.capture.options.call_options import CallOptions, without_effect
from stepgraph.capture.options.current import updates
from stepgraph.capture.options.forbidden import Forbidden
from stepgraph.effects import OPS

_FORBIDDEN_EPOCH = Forbidden("passes an epoch to scheduler.step()")
_FORBIDDEN_ATTRIBUTE = Forbidden("reads an attribute of a scheduler inside the step")
_HIDDEN = ("last_epoch", "_last_lr", "_step_count", "base_lrs", "num_bad_epochs", "best")
"""Attributes that change when a schedule steps: a trace would read the old values."""

_hyper = OPS.hyper
_lr_step = OPS.lr_step


class TrackedScheduler(TrackedObject):
    """A learning rate schedule."""

    @override
    def stand_ins(self, context: TraceContext) -> dict[str, Any]:
        n_groups = len(getattr(self.value.optimizer, "param_groups", ()))
        hidden = {name: _FORBIDDEN_ATTRIBUTE for name in _HIDDEN if name in vars(self.value)}
        return {**hidden, **_stand_ins(entry_name(self.number), n_groups)}

    @override
    def eager_methods(
        self, options: CallOptions, updated: set[int]
    ) -> dict[str, Callable[..., Any]]:
        return {} if options.updates else {"step": without_effect(self.value.step)}

    @override
    def read(self, group: int, key: str) -> float:
        return float(self.value.get_last_lr()[group])


def _stand_ins(name: str, n_groups: int) -> dict[str, Callable[..., Any]]:
    """Return the functions that a trace inlines for the methods of a schedule.

    Args:
        name: The schedule's name in the table.
        n_groups: The number of param groups of its optimizer.
    """
    indices = tuple(map(str, range(n_groups)))

    def step(metrics: Any = None, epoch: Any = None) -> None:
        if not updates():
            return
        if epoch is not None or isinstance(metrics, int):
            _FORBIDDEN_EPOCH.refuse()
        if isinstance(metrics, float):
            metrics = torch.scalar_tensor(metrics, dtype=torch.float64)
        _lr_step(None if metrics is None else metrics.detach(), number_of(name))

    def get_last_lr() -> list[Any]:
        return [_hyper(number_of(name), int(i), "last_lr").item() for i in indices]

    return {"step": step, "get_last_lr": get_last_lr}

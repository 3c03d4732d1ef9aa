"""The tracked objects of one step, and the tracking class for each type."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from stepgraph import torch_private
from stepgraph.capture.objects.averaged_model import TrackedAveragedModel
from stepgraph.capture.objects.base import TraceContext, TrackedObject
from stepgraph.capture.objects.growing_list import ListStandIn, TrackedList
from stepgraph.capture.objects.optimizer import TrackedOptimizer
from stepgraph.capture.objects.scaler import TrackedScaler
from stepgraph.capture.objects.scheduler import TrackedScheduler
from stepgraph.capture.options.call_options import CallOptions


class TrackedObjects:
    """The tracked objects of one compiled step, in the order in which traces found them.

    Attributes:
        all: The objects.
        replaced: Names of attributes that stand-ins replace in a trace, by `id` of their owner.
        seen: Sizes that the step was traced with.
    """

    def __init__(self) -> None:
        self.seen = torch_private.TracedSizes()
        self.all: list[TrackedObject] = []
        self.replaced: dict[int, tuple[str, ...]] = {}
        self._by_id: dict[int, TrackedObject] = {}

    def __getitem__(self, number: int) -> TrackedObject:
        return next(tracked for tracked in self.all if tracked.number == number)

    def find(self, value: Any) -> TrackedObject | None:
        """Return the tracked object of `value`, or None."""
        return self._by_id.get(id(value))

    def add(self, tracked: TrackedObject) -> None:
        """Add a tracked object; one that tracks the same value is replaced."""
        self.all = [known for known in self.all if known.value is not tracked.value]
        self.all.append(tracked)
        self._by_id[id(tracked.value)] = tracked

    @property
    def optimizers(self) -> list[TrackedOptimizer]:
        """The tracked optimizers."""
        return [tracked for tracked in self.all if isinstance(tracked, TrackedOptimizer)]

    def with_own_loop(self) -> list[Any]:
        """Return the optimizers that call the closure in a loop of their own, such as LBFGS."""
        return [tracked.value for tracked in self.all if isinstance(tracked.value, LBFGS)]

    def refresh(self) -> None:
        """Track again every object that has changed since it was found."""
        for tracked in [known for known in self.all if not known.unchanged()]:
            if isinstance(tracked, TrackedList):  # its location holds another list now
                self.all.remove(tracked)
                del self._by_id[id(tracked.value)]
            else:
                self.add(type(tracked)(tracked.value, tracked.name))

    @contextlib.contextmanager
    def with_stand_ins(self, options: CallOptions) -> Iterator[None]:
        """Scope in which stand-ins replace attributes of the instances; all are restored.

        `replaced` lists the attributes, by `id` of their owner.
        """
        scaler = self.find(options.scaler)
        context = TraceContext(
            options=options,
            scaler=None if scaler is None else scaler.number,
            optimizers={id(tracked.value): tracked.number for tracked in self.optimizers},
        )
        with contextlib.ExitStack() as stack:
            for tracked in self.all:
                if isinstance(tracked, TrackedList):
                    stack.callback(tracked.put, tracked.value)
                    tracked.put(ListStandIn(tracked.number))
                    continue
                attributes = tracked.value.__dict__
                before = dict(attributes)
                replaced = tracked.stand_ins(context)
                self.replaced[id(tracked.value)] = tuple(replaced)
                stack.callback(_restore, attributes, before)
                attributes.update(replaced)
            yield


_CLASSES: dict[type, type[TrackedObject]] = {
    Optimizer: TrackedOptimizer,
    LRScheduler: TrackedScheduler,
    GradScaler: TrackedScaler,
    AveragedModel: TrackedAveragedModel,
}


def track(kind: type, tracked: type[TrackedObject]) -> None:
    """Track the instances of a class: stand-ins replace their methods during a trace.

    Args:
        kind: The class; its instances have a `__dict__`.
        tracked: The subclass of `TrackedObject` for its instances.
    """
    _CLASSES[kind] = tracked


def tracked_classes() -> tuple[type, ...]:
    """Return the classes whose instances are tracked."""
    return tuple(_CLASSES)


def tracked_class(value: Any) -> type[TrackedObject] | None:
    """Return the class that tracks `value`, or None."""
    if isinstance(value, AveragedModel):
        update = type(value).update_parameters
        return TrackedAveragedModel if update is AveragedModel.update_parameters else None
    return next((found for kind, found in _CLASSES.items() if isinstance(value, kind)), None)


def _restore(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    for name in list(attributes):
        if name not in before:
            del attributes[name]
    attributes.update(before)

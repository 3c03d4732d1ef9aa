"""The subjects of a step: optimizers, schedulers, scalers, averaged models and growing lists.

A trace does not look into them. While it runs, their methods are replaced on the instance by
stand-ins that leave markers; at replay the marker runs the real method of the real object.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor, optim
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer
from torch.optim import optimizer as optimizer_module
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from stepgraph import torch_private
from stepgraph.capture.objects import scaler_stand_ins, stand_ins
from stepgraph.capture.objects.stand_ins import TABLE, Opaque
from stepgraph.capture.objects.zero_grad_order import Order
from stepgraph.capture.options.call_options import Terms

_numbers = itertools.count()

_ONE_BY_ONE = {
    optim.ASGD,
    optim.Adadelta,
    optim.Adafactor,
    optim.Adagrad,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Rprop,
    optim.SGD,
}
"""Optimizers in which no parameter's update looks at another parameter."""


class Subject:
    """An object of the user's that a step acts on.

    Attributes:
        value: The object.
        number: Its place in the table that traced code reads.
        name: What its author calls it, or empty.
    """

    def __init__(self, value: Any, name: str = "") -> None:
        self.value = value
        self.number = next(_numbers)
        self.name = name
        setattr(TABLE, f"subject_{self.number}", self)

    @property
    def label(self) -> str:
        """What people call it, for example `"Adam(d_opt)"`."""
        kind = type(self.value).__name__
        return f"{kind}({self.name})" if self.name else kind

    def forget(self) -> None:
        """Take the subject out of the table; traced programs that use it must be gone."""
        vars(TABLE).pop(f"subject_{self.number}", None)

    def stand_ins(self, subjects: Subjects, terms: Terms) -> dict[str, Any]:
        """Return the instance attributes that a trace sees."""
        raise NotImplementedError

    def unchanged(self) -> bool:
        """Return whether what the trace took as a fact about the subject still holds."""
        return True

    def may_rehearse(self) -> bool:
        """Return whether its methods may run once more: torch's own code, without hooks."""
        return type(self.value).__module__.startswith(("torch.optim.", "torch.amp.", "torch.cuda."))

    def may_write(self, owner: Any, name: str) -> bool:
        """Return whether `owner.name` may be stored to after all effects of the step have run."""
        return owner is not self.value

    def read(self, group: int, key: str) -> float:
        """Return a number of the subject, now."""
        raise NotImplementedError


class OptimizerSubject(Subject):
    """A `torch.optim.Optimizer`, the user's own subclasses included."""

    def __init__(self, value: Optimizer, name: str = "") -> None:
        super().__init__(value, name)
        self._stepped_as_torch = self.steps_as_torch()
        self._handles: int | None = None  # hooks registered in the process when it was looked at
        self._step: Callable[..., Any] | None = None  # and `step()` then
        self.order = Order(Terms())
        self.groups = [list(group["params"]) for group in value.param_groups]
        self.parameters: list[Tensor] = list(itertools.chain.from_iterable(self.groups))
        self._lengths = list(map(len, self.groups))

    @override
    def stand_ins(self, subjects: Subjects, terms: Terms) -> dict[str, Any]:
        own = type(self.value)
        self.order = Order(terms)
        self._stepped_as_torch = self.steps_as_torch()  # asked before a stand-in takes its place
        scaler = subjects.find(terms.scaler)
        replaced = stand_ins.optimizer_stand_ins(
            self.number,
            terms,
            scaler=None if scaler is None else scaler.number,
            closure_allowed=own.__module__.startswith("torch.optim."),
            own_loop=isinstance(self.value, LBFGS),
        )
        if own.zero_grad is not Optimizer.zero_grad:
            replaced["base_zero_grad"] = replaced.pop("zero_grad")
        groups = [
            stand_ins.Group(self.number, i, tuple(k for k, v in group.items() if type(v) is float))
            for i, group in enumerate(self.value.param_groups)
        ]
        state = Opaque("reads the state of an optimizer inside the step")
        return {**replaced, "param_groups": groups, "state": state}

    @override
    def unchanged(self) -> bool:
        step, handles = self.value.step, RemovableHandle.next_id
        if handles != self._handles or step != self._step:  # hooks may be there, or be gone
            if self.steps_as_torch() != self._stepped_as_torch:
                return False
            self._handles, self._step = handles, step
        groups = [group["params"] for group in self.value.param_groups]
        if list(map(len, groups)) != self._lengths:
            return False
        return all(map(is_, itertools.chain.from_iterable(groups), self.parameters))

    @override
    def may_rehearse(self) -> bool:
        return super().may_rehearse() and self.steps_as_torch()

    def steps_as_torch(self) -> bool:
        """Return whether `step()` is torch's own, no code of the user's before or after it."""
        own_step = vars(self.value).get("step")
        return (
            type(self.value).step.__module__.startswith("torch.optim.")
            and (own_step is None or hasattr(own_step, "_wrapped_by_lr_sched"))
            and not self.value._optimizer_step_pre_hooks
            and not self.value._optimizer_step_post_hooks
            and not optimizer_module._global_optimizer_pre_hooks
            and not optimizer_module._global_optimizer_post_hooks
        )

    def is_transparent(self) -> bool:
        """Return whether `step()` updates each parameter from its own gradient and state alone.

        Then it touches nothing else, and may be done in parts. Numbers that are tensors might be
        anybody's.
        """
        return (
            self.steps_as_torch()
            and type(self.value) in _ONE_BY_ONE
            and not any(
                isinstance(value, Tensor) or (key == "differentiable" and value)
                for group in self.value.param_groups
                for key, values in group.items()
                if key != "params"
                for value in (values if isinstance(values, tuple) else (values,))
            )
        )

    @override
    def may_write(self, owner: Any, name: str) -> bool:
        if self._stepped_as_torch:
            return owner is not self.value or name not in ("param_groups", "state", "defaults")
        return owner is not self.value and all(owner is not v for v in vars(self.value).values())

    @override
    def read(self, group: int, key: str) -> float:
        return float(self.value.param_groups[group][key])


class SchedulerSubject(Subject):
    """A learning rate scheduler."""

    _HIDDEN = ("last_epoch", "_last_lr", "_step_count", "base_lrs", "num_bad_epochs", "best")

    @override
    def stand_ins(self, subjects: Subjects, terms: Terms) -> dict[str, Any]:
        n_groups = len(getattr(self.value.optimizer, "param_groups", ()))
        hidden = Opaque("reads an attribute of a scheduler inside the step")
        return {
            **{name: hidden for name in self._HIDDEN if name in vars(self.value)},
            **stand_ins.scheduler_stand_ins(self.number, terms, n_groups=n_groups),
        }

    @override
    def read(self, group: int, key: str) -> float:
        return float(self.value.get_last_lr()[group])


class ScalerSubject(Subject):
    """A `GradScaler`."""

    def __init__(self, value: GradScaler, name: str = "") -> None:
        super().__init__(value, name)
        self.enabled = value.is_enabled()
        self.scale = getattr(value, "_scale", None)
        if self.scale is None:  # not used yet: a place holder, for a trace that only looks
            self.scale = torch.tensor(value.get_scale())

    @override
    def stand_ins(self, subjects: Subjects, terms: Terms) -> dict[str, Any]:
        if not self.enabled:
            return scaler_stand_ins.disabled_scaler_stand_ins()
        optimizers = {
            id(s.value): s.number for s in subjects.all if isinstance(s, OptimizerSubject)
        }
        return scaler_stand_ins.scaler_stand_ins(self.number, terms, optimizers)

    @override
    def unchanged(self) -> bool:
        now = self.value
        return now.is_enabled() == self.enabled and getattr(now, "_scale", None) is self.scale

    @override
    def read(self, group: int, key: str) -> float:
        return float(self.value.get_scale())


class AveragedModelSubject(Subject):
    """A `torch.optim.swa_utils.AveragedModel`."""

    def __init__(self, value: AveragedModel, name: str = "") -> None:
        super().__init__(value, name)
        self.averages: list[Tensor] = [*value.parameters(), *value.buffers()]
        self._held: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
            (table, tuple(table.values()))
            for module in value.modules()
            for table in (module._parameters, module._buffers, module._modules)
        ]

    @override
    def stand_ins(self, subjects: Subjects, terms: Terms) -> dict[str, Any]:
        return stand_ins.averaged_model_stand_ins(self.number, terms)

    @override
    def unchanged(self) -> bool:
        return all(
            len(now) == len(then) and all(map(is_, now.values(), then)) for now, then in self._held
        )


class ListSubject(Subject):
    """A list or deque that the step appends to.

    Attributes:
        holder: Reads and writes the place that holds the list, so that a trace can put a
            recorder there.
    """

    def __init__(
        self, value: Any, name: str, holder: tuple[Callable[[], Any], Callable[[Any], None]]
    ) -> None:
        super().__init__(value, name)
        self.get, self.put = holder

    @override
    def stand_ins(self, subjects: Subjects, terms: Terms) -> dict[str, Any]:
        return {}

    @override
    def may_rehearse(self) -> bool:
        return True

    @override
    def unchanged(self) -> bool:
        return self.get() is self.value


class Subjects:
    """The subjects of one compiled step, in the order they were met.

    Attributes:
        all: The subjects.
        replaced: Names of attributes that stand-ins replace in a trace, by `id` of their owner.
        seen: Sizes that the step was traced with.
    """

    def __init__(self) -> None:
        self.seen = torch_private.Seen()
        self.all: list[Subject] = []
        self.replaced: dict[int, tuple[str, ...]] = {}
        self._by_id: dict[int, Subject] = {}

    def __getitem__(self, number: int) -> Subject:
        return next(subject for subject in self.all if subject.number == number)

    def find(self, value: Any) -> Subject | None:
        """Return the subject that stands for `value`."""
        return self._by_id.get(id(value))

    def add(self, subject: Subject) -> None:
        """Add a subject; one that stands for the same object is replaced."""
        self.all = [known for known in self.all if known.value is not subject.value]
        self.all.append(subject)
        self._by_id[id(subject.value)] = subject

    def with_own_loop(self) -> list[Any]:
        """Return the optimizers that call a closure as often as they like."""
        return [subject.value for subject in self.all if isinstance(subject.value, LBFGS)]

    def refresh(self) -> None:
        """Look again at every subject that has changed since it was met."""
        for subject in [known for known in self.all if not known.unchanged()]:
            if isinstance(subject, ListSubject):  # another list is in its place now
                self.all.remove(subject)
                del self._by_id[id(subject.value)]
            else:
                self.add(type(subject)(subject.value, subject.name))

    @contextlib.contextmanager
    def standing_in(self, terms: Terms) -> Iterator[None]:
        """Scope in which the instances show stand-ins; every attribute is restored.

        `replaced` says, by id of the object, which attributes.
        """
        with contextlib.ExitStack() as stack:
            for subject in self.all:
                if isinstance(subject, ListSubject):
                    stack.callback(subject.put, subject.value)
                    subject.put(stand_ins.Recorder(subject.number))
                    continue
                attributes = subject.value.__dict__
                before = dict(attributes)
                replaced = subject.stand_ins(self, terms)
                self.replaced[id(subject.value)] = tuple(replaced)
                stack.callback(_restore, attributes, before)
                attributes.update(replaced)
            yield


SUBJECTS: Mapping[type, type[Subject]] = {
    Optimizer: OptimizerSubject,
    LRScheduler: SchedulerSubject,
    GradScaler: ScalerSubject,
    AveragedModel: AveragedModelSubject,
}
"""The kind of subject that stands for an instance of a class."""


def subject_class(value: Any) -> type[Subject] | None:
    """Return the kind of subject that `value` would be, or None."""
    if isinstance(value, AveragedModel):
        update = type(value).update_parameters
        return AveragedModelSubject if update is AveragedModel.update_parameters else None
    return next((found for kind, found in SUBJECTS.items() if isinstance(value, kind)), None)


def is_growing(value: Any) -> bool:
    """Return whether `value` is a container that a recorder can stand in for."""
    return type(value) in (list, deque)


def _restore(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    for name in list(attributes):
        if name not in before:
            del attributes[name]
    attributes.update(before)


def zero_step_codes() -> set[Any]:
    """Return the code of stand-ins whose stores to `.grad` are covered by a marker."""
    return {stand_ins.optimizer_stand_ins(-1, Terms(), closure_allowed=False)["zero_grad"].__code__}

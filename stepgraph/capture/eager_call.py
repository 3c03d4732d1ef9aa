"""The terms of a call for the user's Python, run eagerly: by methods replaced on the instances."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from stepgraph.capture.objects.registry import (
    AveragedModelSubject,
    OptimizerSubject,
    ScalerSubject,
    SchedulerSubject,
    Subject,
    Subjects,
)
from stepgraph.capture.options.call_options import Terms, autocast_devices, without_clipping
from stepgraph.capture.options.microbatches import Part
from stepgraph.capture.options.split_loop import beginning


@contextlib.contextmanager
def on_terms(terms: Terms, subjects: Subjects) -> Iterator[None]:
    """Scope in which the user's Python does what `terms` say.

    Args:
        terms: The terms.
        subjects: All optimizers, schedulers, scalers and averaged models that the step acts on.
    """
    if terms.plain:
        yield
        return
    if not terms.split.splits:
        with _on_terms_of_one(terms, subjects):
            yield
        return
    with contextlib.ExitStack() as part_scope:

        def begin(part: Part) -> None:
            part_scope.close()
            part_scope.enter_context(_on_terms_of_one(terms.of(part), subjects))

        with beginning(begin):
            yield


@contextlib.contextmanager
def _on_terms_of_one(terms: Terms, subjects: Subjects) -> Iterator[None]:
    """Scope in which the step runs once: a call, or a part of one."""
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, torch.autograd, "backward", torch.autograd.backward)
        torch.autograd.backward = _backward(terms, torch.autograd.backward)
        if not terms.updates:
            stack.enter_context(without_clipping())
        updated: set[int] = set()
        for subject in subjects.all:
            attributes = getattr(subject.value, "__dict__", {})
            for name, method in _methods(subject, terms, updated).items():
                stack.callback(_restore, attributes, name, attributes.get(name))
                attributes[name] = method
        yield


def _restore(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        del attributes[name]
    else:
        attributes[name] = value


def _methods(subject: Subject, terms: Terms, updated: set[int]) -> dict[str, Callable[..., Any]]:
    """Return the methods that an instance shows in an eager call."""
    value = subject.value
    if isinstance(subject, OptimizerSubject):
        step = _step(value, terms, updated)
        return {"step": step, "zero_grad": _zero_grad(value, terms, updated)}
    if terms.updates:
        return {}
    if isinstance(subject, SchedulerSubject):
        return {"step": _nothing(value.step)}
    if isinstance(subject, AveragedModelSubject):
        return {"update_parameters": _nothing(value.update_parameters)}
    if isinstance(subject, ScalerSubject) and subject.enabled:
        return {
            "step": _noting(value.step, updated),
            "unscale_": _nothing(value.unscale_),
            "update": _nothing(value.update),
        }
    return {}


def _backward(terms: Terms, original: Callable[..., None]) -> Callable[..., None]:
    """Return `torch.autograd.backward`, seeded with the share of this run in the window."""

    @functools.wraps(original)
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        losses = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        given = [grad_tensors] if isinstance(grad_tensors, Tensor) else grad_tensors
        seeds = [None] * len(losses) if given is None else list(given)
        if terms.windowed or terms.scaler is not None:
            seeds = [_seed(*pair, terms) for pair in zip(losses, seeds, strict=True)]
        with _not_casting(terms):
            original(losses, seeds, *args, **kwargs)

    return backward


def _seed(loss: Tensor, given: Tensor | None, terms: Terms) -> Tensor:
    seed = torch.ones_like(loss) if given is None else given
    if terms.divisor > 1:
        seed = seed / terms.divisor
    if terms.weight < 1:
        seed = seed * terms.weight
    return seed if terms.scaler is None else terms.scaler.scale(seed)


@contextlib.contextmanager
def _not_casting(terms: Terms) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in autocast_devices() if terms.autocast else ():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _step(optimizer: Any, terms: Terms, updated: set[int]) -> Callable[..., Any]:
    original = optimizer.step
    scaled = False  # whether the scaler, called from here, calls back

    @functools.wraps(original)
    def step(closure: Any = None) -> Any:
        nonlocal scaled
        if scaled:
            return original()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updated.add(id(optimizer))
        if not terms.updates:
            return loss
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        with _not_casting(terms):
            if terms.clips and terms.scaler is not None:
                terms.scaler.unscale_(optimizer)
            if terms.clip_norm is not None:
                clip_grad_norm_(parameters, terms.clip_norm)
            if terms.clip_value is not None:
                clip_grad_value_(parameters, terms.clip_value)
            if terms.scaler is None:
                returned = original()
            else:
                scaled = True
                try:
                    returned = terms.scaler.step(optimizer)
                finally:
                    scaled = False
        if terms.autocast is not None:
            torch.clear_autocast_cache()  # it holds casts of the old weights
        return loss if returned is None else returned

    return step


def _zero_grad(optimizer: Any, terms: Terms, updated: set[int]) -> Callable[..., None]:
    original = optimizer.zero_grad

    @functools.wraps(original)
    def zero_grad(set_to_none: bool = True) -> None:
        if terms.updates if id(optimizer) in updated else terms.clears:
            original(set_to_none)

    return zero_grad


def _nothing(original: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(original)
    def nothing(*args: Any, **kwargs: Any) -> None:
        """Wait for the last call of the window."""

    return nothing


def _noting(original: Callable[..., Any], updated: set[int]) -> Callable[..., None]:
    @functools.wraps(original)
    def step(optimizer: Any, *args: Any, **kwargs: Any) -> None:
        updated.add(id(optimizer))

    return step

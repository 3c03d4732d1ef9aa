"""An eager call with options: the user's Python, with methods replaced on its objects."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from stepgraph.capture.objects import TrackedObjects
from stepgraph.capture.options.call_options import CallOptions, autocast_off
from stepgraph.capture.options.current import clip_nothing
from stepgraph.capture.options.microbatches import Part
from stepgraph.capture.options.split_loop import before_each_part
from stepgraph.torch_private import PATCH_BACKWARD, PATCH_CLIP_VALUE, PATCH_SCALE_TO_NORM


@contextlib.contextmanager
def with_call_options(options: CallOptions, objects: TrackedObjects) -> Iterator[None]:
    """Scope in which the user's Python runs with `options`, in this thread.

    Args:
        options: The options of the call.
        objects: All optimizers, schedules, scalers and averaged models that the step acts on.
    """
    if options.is_default:
        yield
        return
    if not options.split.splits:
        with _with_options_of_one(options, objects):
            yield
        return
    with contextlib.ExitStack() as part_scope:

        def begin(part: Part) -> None:
            part_scope.close()
            part_scope.enter_context(_with_options_of_one(options.of(part), objects))

        with before_each_part(begin):
            yield


@contextlib.contextmanager
def _with_options_of_one(options: CallOptions, objects: TrackedObjects) -> Iterator[None]:
    """Scope in which the step runs once: a call, or a part of one."""
    with contextlib.ExitStack() as stack:
        backward = _backward(options, PATCH_BACKWARD.current)
        stack.enter_context(PATCH_BACKWARD.replaced_by(backward))
        if not options.updates:
            for patch in (PATCH_SCALE_TO_NORM, PATCH_CLIP_VALUE):
                stack.enter_context(patch.replaced_by(clip_nothing))
        updated: set[int] = set()
        for tracked in objects.all:
            attributes = getattr(tracked.value, "__dict__", {})
            for name, method in tracked.eager_methods(options, updated).items():
                stack.callback(_restore, attributes, name, attributes.get(name))
                attributes[name] = method
        yield


def _restore(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        del attributes[name]
    else:
        attributes[name] = value


def _backward(options: CallOptions, original: Callable[..., None]) -> Callable[..., None]:
    """Return `torch.autograd.backward`, with a seed scaled by this run's share of the window."""

    @functools.wraps(original)
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        losses = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        given = [grad_tensors] if isinstance(grad_tensors, Tensor) else grad_tensors
        seeds = [None] * len(losses) if given is None else list(given)
        if options.windowed or options.scaler is not None:
            seeds = [_seed(*pair, options) for pair in zip(losses, seeds, strict=True)]
        with autocast_off(options):
            original(losses, seeds, *args, **kwargs)

    return backward


def _seed(loss: Tensor, given: Tensor | None, options: CallOptions) -> Tensor:
    seed = torch.ones_like(loss) if given is None else given
    if options.divisor > 1:
        seed = seed / options.divisor
    if options.weight < 1:
        seed = seed * options.weight
    return seed if options.scaler is None else options.scaler.scale(seed)

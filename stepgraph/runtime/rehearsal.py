"""Run a new program once on copies, and compare it with the eager call that follows."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Rehearsal:
    """What a program left in copies of its inputs just before its first update.

    Attributes:
        inputs: The real inputs.
        copies: The copies that the program wrote instead.
        names: The inputs' names, for messages.
    """

    inputs: Sequence[Any]
    copies: Sequence[Any]
    names: Sequence[str]
    difference: str | None = None
    compared: bool = False
    _grads: dict[int, Tensor | None] = field(default_factory=dict)

    def compare(self) -> None:
        """Compare the copies with the real tensors, now; the first call counts."""
        if self.compared:
            return
        self.compared = True
        for real, copy, name in zip(self.inputs, self.copies, self.names, strict=True):
            if not isinstance(real, Tensor):
                continue
            if not same(real, copy):
                self.difference = name
                return
            if real.is_leaf and real.requires_grad and not _same_grad(real.grad, copy.grad):
                self.difference = f"{name}.grad"
                return


def rehearse(
    function: Callable[..., Any], inputs: Sequence[Any], names: Sequence[str]
) -> Rehearsal:
    """Run `function` on copies of `inputs`; the random state is restored.

    Args:
        function: A program that stops before its first update.
        inputs: The real inputs: tensors and numbers. Not written.
        names: A name for each input.
    """
    copies = _copies(inputs)
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        with torch.no_grad():
            function(*copies)
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
    return Rehearsal(inputs, copies, names)


@contextlib.contextmanager
def watching(owner: Any, method: str | None, at_entry: Callable[[], None]) -> Iterator[None]:
    """Scope in which `at_entry` is called when `owner.method` is entered.

    A closure given to the method belongs to what comes before: then it is called when the
    closure returns.
    """
    if owner is None or method is None:
        yield
        return
    attributes = owner.__dict__
    had, original = method in attributes, getattr(owner, method)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        closures = [a for a in (*args, *kwargs.values()) if inspect.isfunction(a)]
        if not closures:
            at_entry()
            return original(*args, **kwargs)

        def closure() -> Any:
            loss = closures[0]()
            at_entry()
            return loss

        return original(closure)

    attributes[method] = watched
    try:
        yield
    finally:
        if had:
            attributes[method] = original
        else:
            attributes.pop(method, None)


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same bits, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _same_grad(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return same(a, b) and a.stride() == b.stride()


def _copies(inputs: Sequence[Any]) -> list[Any]:
    """Copy tensors, keeping strides and which of them share memory."""
    storages: dict[int, Any] = {}
    copies: list[Any] = []
    for value in inputs:
        if not isinstance(value, Tensor):
            copies.append(value)
            continue
        storage = value.untyped_storage()
        key = storage.data_ptr() or id(value)
        if key not in storages:
            storages[key] = storage.clone()
        copy = torch.empty(0, dtype=value.dtype, device=value.device)
        copy.set_(storages[key], value.storage_offset(), value.shape, value.stride())
        copies.append(copy.requires_grad_(value.requires_grad))
    by_id = {id(value): copy for value, copy in zip(inputs, copies, strict=True)}
    for value, copy in zip(inputs, copies, strict=True):
        if isinstance(value, Tensor) and value.is_leaf and value.grad is not None:
            copy.grad = by_id.get(id(value.grad), value.grad)
    return copies

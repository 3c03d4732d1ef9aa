"""Run a new program once before its first use, and compare it with the eager call that follows.

A whole rehearsal runs the program, updates included, and undoes its writes. If an update would run
code that must not run twice (a user's own optimizer, hooks), a partial rehearsal runs on copies
and stops before the first update.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stepgraph.runtime.snapshot import Snapshot, same


class Rehearsal(Protocol):
    """The results of a program, for comparison with those of the eager call."""

    difference: str | None

    def compare(self) -> None:
        """Compare with the present state; only the first call has an effect."""

    def compare_result(self, result: Any) -> None:
        """Compare with the result of the eager call."""


class WholeRehearsal:
    """Runs a program on the real objects and restores them.

    Args:
        program: A program without appends to the user's lists. Called with `inputs`.
        inputs: The real inputs: tensors and numbers.
        names: A name for each input.
        owners: The objects whose state the program writes, by name.
        besides: Paths that are not compared: the step writes them outside of the program.
        lists: Lists of the user's that the step appends to; it may return them.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        inputs: Sequence[Any],
        names: Sequence[str],
        owners: Mapping[str, Any],
        besides: Collection[str] = (),
        lists: Sequence[Any] = (),
    ) -> None:
        self.difference: str | None = None
        self._besides, self._lists = besides, lists
        self._tensors = {n: v for n, v in zip(names, inputs, strict=True) if isinstance(v, Tensor)}
        self._owners = owners
        before = self._snapshot()
        try:
            with restored_rng(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the eager call shows them
                outputs = program(*inputs)
                self._randomness = _rng_states()
            self._after = self._snapshot()
            self._outputs = [o.detach().clone() for o in outputs if isinstance(o, Tensor)]
        finally:
            before.restore()

    def compare(self) -> None:
        """Compare with the present state."""
        self.difference = self._snapshot().difference(self._after, besides=self._besides)
        if self.difference is None and not _all_equal(self._randomness, _rng_states()):
            self.difference = "torch's random state"

    def compare_result(self, result: Any) -> None:
        """Check that every tensor in the eager result is among the program's results."""
        known = [
            *self._outputs,
            *self._tensors.values(),
            *tree_leaves(list(map(list, self._lists))),
        ]
        known = [tensor for tensor in known if isinstance(tensor, Tensor)]
        for i, leaf in enumerate(tree_leaves(result)):
            if isinstance(leaf, Tensor) and not any(same(leaf.detach(), k.detach()) for k in known):
                self.difference = self.difference or f"returned tensor {i}"

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._tensors, self._owners)


class PartialRehearsal:
    """Runs a program that stops before its first update, on copies of its inputs.

    Args:
        program: The program. Called with copies.
        inputs: The real inputs: tensors and numbers. Not written.
        names: A name for each input.
        besides: Paths that are not compared.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        inputs: Sequence[Any],
        names: Sequence[str],
        besides: Collection[str] = (),
    ) -> None:
        self.difference: str | None = None
        self._besides = besides
        self._compared = False
        copies = _copies(inputs)
        with restored_rng():
            program(*copies)
        pairs = zip(names, inputs, copies, strict=True)
        self._triples = [triple for triple in pairs if isinstance(triple[1], Tensor)]

    def compare(self) -> None:
        """Compare the copies with the real tensors; only the first call has an effect."""
        if self._compared:
            return
        self._compared = True
        for name, real, copy in self._triples:
            there = Snapshot({name: copy}, {})
            found = Snapshot({name: real}, {}).difference(there, besides=self._besides)
            self.difference = self.difference or found

    def compare_result(self, result: Any) -> None:
        """Do nothing: the program stopped before it had results."""


@contextlib.contextmanager
def restored_rng() -> Iterator[None]:
    """Scope that restores torch's random state."""
    cpu, *cuda = _rng_states()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _rng_states() -> list[Tensor]:
    """Return the states of torch's generators: of the CPU, then of each GPU if any is used."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def _all_equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, left, right))  # a GPU that one of the two has not used is left out


@contextlib.contextmanager
def at_entry_of(owner: Any, method: str | None, at_entry: Callable[[], None]) -> Iterator[None]:
    """Scope in which `at_entry` is called at the entry of `owner.method`.

    If the method receives a closure, which runs before the update, `at_entry` is called when the
    closure returns.
    """
    if owner is None or method is None:
        yield
        return
    original = getattr(owner, method)

    @functools.wraps(original)
    def called(*args: Any, **kwargs: Any) -> Any:
        closures = [a for a in (*args, *kwargs.values()) if inspect.isfunction(a)]
        if not closures:
            at_entry()
            return original(*args, **kwargs)

        def closure() -> Any:
            loss = closures[0]()
            at_entry()
            return loss

        return original(closure)

    with _replaced(owner, method, called):
        yield


@contextlib.contextmanager
def results_of(optimizers: Sequence[Any]) -> Iterator[list[Any]]:
    """Scope that collects the results of `step()` of `optimizers` that are not None."""
    returned: list[Any] = []
    with contextlib.ExitStack() as stack:
        for optimizer in optimizers:
            stack.enter_context(_replaced(optimizer, "step", _collecting(optimizer.step, returned)))
        yield returned


def _collecting(step: Callable[..., Any], returned: list[Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def collected(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if result is not None:
            returned.append(result)
        return result

    return collected


@contextlib.contextmanager
def _replaced(owner: Any, method: str, replacement: Any) -> Iterator[None]:
    """Scope in which a method of an instance is replaced."""
    attributes = owner.__dict__
    had, original = method in attributes, getattr(owner, method)
    attributes[method] = replacement
    try:
        yield
    finally:
        if had:
            attributes[method] = original
        else:
            attributes.pop(method, None)


def _copies(inputs: Sequence[Any]) -> list[Any]:
    """Copy tensors; keep their strides and the sharing of memory among them."""
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

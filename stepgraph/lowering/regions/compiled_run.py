"""A region: a run of computation as one call, tried against its eager self before it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from stepgraph import torch_private
from stepgraph.lowering.closeness import difference, exact_results, rounded_results

Function = Callable[[list[Any]], Sequence[Any]]


class Unsupported(Exception):  # noqa: N818  (a decision, not an error)
    """A run stays eager; says why."""


class Region:
    """A run of ATen operators with an eager and a compiled form.

    The first call is the trial: the compiled form runs on copies, the eager form on the inputs,
    and the caller gets the eager results. Only when both agree (see `closeness`) are later calls
    compiled; else they stay eager and `refusal` says why.

    Args:
        name: What it is called in programs and reports.
        graph_module: The operators; for the exact results when the two forms disagree.
        eager: The eager form: takes the inputs as a list.
        compiled: The compiled form.
        written: Positions of the inputs that it writes; an attribute, too.
        undriven: Why the kernels of the compiled form are called from Python, or None if they are
            not; an attribute, too.

    Attributes:
        run: What a program calls: takes the inputs as a list, returns the outputs.
        refusal: Why it runs eagerly, or None.
        tried: Whether the trial is over.
    """

    def __init__(
        self,
        name: str,
        graph_module: GraphModule,
        *,
        eager: Function,
        compiled: Function,
        written: tuple[int, ...],
        undriven: str | None = None,
    ) -> None:
        self.__name__ = self.name = name
        self.graph_module = graph_module
        self.operators = sum(n.op == "call_function" for n in graph_module.graph.nodes)
        self.refusal: str | None = None
        self.tried = False
        self.run: Function = self._try
        self._eager, self._compiled, self.written = eager, compiled, written
        self.undriven = undriven

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        """Run it; programs call `run`."""
        return self.run(list(inputs))

    def try_again(self) -> None:
        """Make the next call a trial."""
        self.tried, self.run = False, self._try

    def _try(self, inputs: list[Any]) -> Sequence[Any]:
        before = self._copied(inputs)
        compiled_inputs = self._copied(inputs)
        try:
            compiled = list(self._compiled(list(compiled_inputs)))
            self.refusal = self._shared(compiled, compiled_inputs)
        except Exception as error:  # the eager form shows what the user's error is
            compiled, self.refusal = [], f"fails: {type(error).__name__}: {error}"
        results = self._eager(list(inputs))
        if self.refusal is None:
            self.refusal = _laid_out_otherwise(compiled, results)
        if self.refusal is None:
            mine = [*compiled, *(compiled_inputs[i] for i in self.written)]
            theirs = [*results, *(inputs[i] for i in self.written)]
            region = self.graph_module, before, self.written
            self.refusal = difference(
                mine,
                theirs,
                lambda: exact_results(*region),
                lambda seed: rounded_results(*region, seed),
            )
        if self.refusal is not None:
            self.run = self._eager
        else:
            self.run = self._and_tell if self.written else self._compiled
        self.tried = True
        return results

    def _and_tell(self, inputs: list[Any]) -> Sequence[Any]:
        """Run the compiled form, which writes behind autograd's back, and tell autograd."""
        written = [inputs[i] for i in self.written]
        results = self._compiled(inputs)
        torch_private.written(written)
        return results

    def _copied(self, inputs: list[Any]) -> list[Any]:
        """Return the inputs, those that are written as copies of the same layout."""
        copies = list(inputs)
        for i in self.written:
            value = inputs[i]
            copies[i] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=value.device
            ).copy_(value)
        return copies

    def _shared(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> str | None:
        """Return a complaint if an output shares memory with another or with an input."""
        tensors = [t for t in outputs if isinstance(t, Tensor) and t.numel()]
        storages = [t.untyped_storage().data_ptr() for t in tensors]
        own = {t.untyped_storage().data_ptr() for t in inputs if isinstance(t, Tensor)}
        if len(set(storages)) != len(storages) or own & set(storages):
            return "two of its results would share memory"
        return None


def _laid_out_otherwise(compiled: Sequence[Any], eager: Sequence[Any]) -> str | None:
    """Return a complaint if a result has other strides; those of size 1 do not count."""
    for i, (mine, theirs) in enumerate(zip(compiled, eager, strict=True)):
        if not isinstance(theirs, Tensor) or not theirs.numel() or mine.shape != theirs.shape:
            continue  # the values will show
        strides = zip(theirs.shape, mine.stride(), theirs.stride(), strict=True)
        if any(a != b for n, a, b in strides if n > 1):
            return f"result {i} of {len(eager)} is laid out otherwise than in eager"
    return None

"""A run of operators as one call: compiled, after its results have equalled those of eager."""

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
    """A run of operators stays eager, for the reason in the message."""


class CompiledRun:
    """A run of ATen operators with an eager and a compiled form.

    The first call is the trial: the compiled form runs on copies, the eager form on the inputs,
    and the call returns the eager results. Later calls run the compiled form if both were close
    (see `closeness`), else the eager form; `refusal` then holds the reason.

    Args:
        name: Its name in programs and reports.
        graph_module: The operators. The exact results are computed from them if the forms differ.
        eager: The eager form: takes the inputs as a list.
        compiled: The compiled form.
        written: Positions of the inputs that it writes; also an attribute.
        undriven: Why the kernels of the compiled form are called from Python instead of C++, or
            None if C++ calls them; also an attribute.

    Attributes:
        run: The function that a program calls: takes the inputs as a list, returns the outputs.
        refusal: Why the eager form runs, or None.
        tried: Whether the trial has run.
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
        """Run it, as `run` does for a list of inputs."""
        return self.run(list(inputs))

    def try_again(self) -> None:
        """Make the next call a trial."""
        self.tried, self.run = False, self._try

    def _try(self, inputs: list[Any]) -> Sequence[Any]:
        before = self._copied(inputs)
        compiled_inputs = self._copied(inputs)
        try:
            compiled = list(self._compiled(list(compiled_inputs)))
            self.refusal = self._sharing(compiled, compiled_inputs)
        except Exception as error:  # if the error is the user's, the eager form raises it
            compiled, self.refusal = [], f"fails: {type(error).__name__}: {error}"
        results = self._eager(list(inputs))
        if self.refusal is None:
            self.refusal = _strides_differ(compiled, results)
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
            self.run = self._run_and_bump_versions if self.written else self._compiled
        self.tried = True
        return results

    def _run_and_bump_versions(self, inputs: list[Any]) -> Sequence[Any]:
        """Run the compiled form, then bump the versions of the tensors that it has written.

        Compiled kernels do not bump the version counters by which autograd detects that
        a saved tensor has changed.
        """
        written = [inputs[i] for i in self.written]
        results = self._compiled(inputs)
        torch_private.written(written)
        return results

    def _copied(self, inputs: list[Any]) -> list[Any]:
        """Return the inputs; the written ones are copies with the same strides."""
        copies = list(inputs)
        for i in self.written:
            value = inputs[i]
            copies[i] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=value.device
            ).copy_(value)
        return copies

    def _sharing(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> str | None:
        """Return a reason to refuse if an output shares memory with another or with an input."""
        tensors = [t for t in outputs if isinstance(t, Tensor) and t.numel()]
        storages = [t.untyped_storage().data_ptr() for t in tensors]
        own = {t.untyped_storage().data_ptr() for t in inputs if isinstance(t, Tensor)}
        if len(set(storages)) != len(storages) or own & set(storages):
            return "two of its results would share memory"
        return None


def _strides_differ(compiled: Sequence[Any], eager: Sequence[Any]) -> str | None:
    """Return a reason to refuse if strides of a result differ from eager.

    Strides of dimensions of size 1 are ignored.
    """
    for i, (mine, theirs) in enumerate(zip(compiled, eager, strict=True)):
        if not isinstance(theirs, Tensor) or not theirs.numel() or mine.shape != theirs.shape:
            continue  # the comparison of values reports that
        strides = zip(theirs.shape, mine.stride(), theirs.stride(), strict=True)
        if any(a != b for n, a, b in strides if n > 1):
            return f"result {i} of {len(eager)} has other strides than in eager"
    return None

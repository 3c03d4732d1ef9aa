"""Comparison of compiled results with eager ones, with tolerances that depend on the dtype alone.

Fused arithmetic rounds at other points and sums in another order. A result is accepted if

    |compiled - eager| <= sqrt(eps) * |eager|

in the 2-norm over the tensor, with eps of its dtype: half of the digits agree. A rounding error is
amplified by the condition number of the later operators; a well-posed step keeps half of the
digits, and a wrong program keeps none.

If that fails, both are compared with exact results: the same operators in float64. Some gradients
are zero in exact arithmetic - of a bias before a batch norm, of an attention's key bias - and eager
and compiled results are two different roundings of zero, without a digit in common. Then

    |compiled - exact| <= sqrt(eps) * |exact| + 16 * |eager - exact|

states that the compiled result is no worse than eager's own, up to four bits.

Eager's may be exact by chance: an activation that is zero up to rounding is on one side of a ReLU
or on the other, and gradients have one term more or less. Then the exact results are computed
again, with every operator's result rounded at random, two bits too early; the compiled results are
accepted if they all agree, as closely as above, with one such run. Integers and booleans must be
equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_map

from stepgraph.effects import effect_of
from stepgraph.ir.memory_access import storages_of

BITS = 16.0
"""Largest allowed ratio of the errors of compiled and eager result."""

ROUNDINGS = 16
"""Number of runs with random rounding."""

_EARLY = 4.0
"""Factor of the rounding error in these runs, relative to the dtype's."""


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative tolerance for results of a floating-point type.

    Example:
        >>> tolerance(torch.float32) < 4e-4
        True
    """
    return float(torch.finfo(dtype).eps ** 0.5)


def difference(
    compiled: Sequence[Any],
    eager: Sequence[Any],
    exact: Callable[[], Sequence[Any]],
    rounded: Callable[[int], Sequence[Any]] | None = None,
) -> str | None:
    """Return how compiled results differ from eager ones, or None if they are close.

    Args:
        compiled: The results to check.
        eager: The results of the eager operators on the same inputs.
        exact: Returns the results in float64. Called if the two differ too much.
        rounded: Returns, for a seed, the results in float64 with every operator's result rounded
            at random. Called if the exact results do not explain the difference.
    """
    far = [i for i, pair in enumerate(zip(compiled, eager, strict=True)) if not is_close(*pair)]
    if not far:
        return None
    try:
        best = exact()
    except Exception as error:
        return f"result {far[0]} differs from eager, and no exact one exists: {error}"
    allowed = {i: _allowed(compiled[i], eager[i], best[i]) for i in far}
    far = [i for i in far if not _is_near(compiled[i], best[i], allowed[i])]
    if not far:
        return None
    for seed in range(0 if rounded is None else ROUNDINGS):
        other = rounded(seed)  # type: ignore[misc]
        if all(_is_near(compiled[i], other[i], allowed[i]) for i in far):
            return None
    return f"result {far[0]} of {len(eager)} differs from eager"


def is_close(compiled: Any, eager: Any) -> bool:
    """Return whether two results agree within `tolerance`."""
    if not isinstance(eager, Tensor):
        return bool(compiled == eager)
    if compiled.shape != eager.shape or compiled.dtype != eager.dtype:
        return False
    if not eager.is_floating_point():
        return torch.equal(compiled, eager)
    if not _same_specials(compiled, eager):
        return False
    return _distance(compiled, eager) <= tolerance(eager.dtype) * _norm(eager)


def _allowed(compiled: Any, eager: Any, exact: Any) -> float | None:
    """Return the allowed distance from the exact result; None if results must be equal."""
    if not isinstance(eager, Tensor) or not eager.is_floating_point():
        return None
    if (compiled.shape, compiled.dtype) != (eager.shape, eager.dtype):
        return None
    if not _same_specials(compiled, eager):
        return None
    return tolerance(eager.dtype) * _norm(exact) + BITS * _distance(eager, exact)


def _is_near(compiled: Any, exact: Any, allowed: float | None) -> bool:
    return allowed is not None and _distance(compiled, exact) <= allowed


def _same_specials(a: Tensor, b: Tensor) -> bool:
    """Return whether infinities and NaN are at the same positions."""
    finite = torch.isfinite(a)
    if bool(finite.all()):
        return bool(torch.isfinite(b).all())
    return torch.equal(a.nan_to_num()[~finite], b.nan_to_num()[~finite]) and torch.equal(
        finite, torch.isfinite(b)
    )


def _norm(value: Tensor) -> float:
    finite = value.detach().double()
    return float(torch.where(torch.isfinite(finite), finite, 0.0).norm())


def _distance(a: Tensor, b: Tensor) -> float:
    return _norm(a.detach().double() - b.detach().double())


def exact_results(
    graph_module: GraphModule, inputs: Sequence[Any], written: Sequence[int]
) -> list[Any]:
    """Return the results of a region in float64, then the inputs it writes.

    Args:
        graph_module: The region.
        inputs: Its inputs before the run. Not written.
        written: Positions of the inputs it writes.
    """
    return _run(_InFloat64(graph_module), inputs, written)


def rounded_results(
    graph_module: GraphModule, inputs: Sequence[Any], written: Sequence[int], seed: int
) -> list[Any]:
    """Return the same with every operator's result rounded at random, to its own dtype.

    Args:
        graph_module: The region.
        inputs: Its inputs before the run. Not written.
        written: Positions of the inputs it writes.
        seed: Seed of the random rounding.
    """
    return _run(_Rounding(graph_module, seed), inputs, written)


def _run(interpreter: Interpreter, inputs: Sequence[Any], written: Sequence[int]) -> list[Any]:
    doubled = [_doubled(value) for value in inputs]
    results = interpreter.run(*doubled)
    return [*results, *(doubled[i] for i in written)]


class _InFloat64(Interpreter):
    """Runs a region with every floating-point type replaced by float64."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator."""
        effect = effect_of(target)
        if effect is not None and effect.in_region is not None:
            op, names = effect.in_region
            return op(*(args[effect.positions[name]] for name in names))
        args, kwargs = tree_map(_double_type, (args, kwargs))
        return super().call_function(target, args, kwargs)


class _Rounding(_InFloat64):
    """Rounds every newly allocated result of an operator, up or down at random."""

    def __init__(self, graph_module: GraphModule, seed: int) -> None:
        super().__init__(graph_module)
        self._generator = torch.Generator().manual_seed(seed)

    def run_node(self, n: Node) -> Any:
        """Run one operator and round its result."""
        result = super().run_node(n)
        meant = n.meta.get("val")
        if not (isinstance(meant, Tensor) and isinstance(result, Tensor)):
            return result
        if n.op != "call_function" or not meant.is_floating_point() or storages_of(n) != {n}:
            return result
        noise = torch.rand(result.shape, generator=self._generator, dtype=torch.float64)
        return result * (1 + _EARLY * torch.finfo(meant.dtype).eps * (2 * noise - 1))


def _double_type(value: Any) -> Any:
    is_type = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.float64 if is_type else value


def _doubled(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().double() if value.is_floating_point() else value.detach().clone()

"""Steps with `backend="inductor"` beside the same steps run eagerly.

Tolerance: half of the digits of the dtype, in the 2-norm over a tensor (see `closeness`), after
every call. SGD wherever many steps are compared: Adam turns the rounding noise of a gradient that
is zero into a full step.
"""

import copy
import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import stepgraph
from stepgraph.lowering.closeness import is_close


@dataclasses.dataclass
class World:
    """A model, what else a step changes, and the step."""

    model: nn.Module
    step: Callable[..., Any]


def side_by_side(
    make: Callable[[], World],
    batches: Callable[[int], tuple[Any, ...]],
    *,
    calls: int = 5,
    regions: int | None = 1,
    undriven: tuple[str, ...] | None = None,
) -> stepgraph.Explanation:
    """Run a step plain and compiled on the same batches; compare all they leave.

    Args:
        make: Makes a world; called twice.
        batches: Makes the arguments of a call.
        calls: How many.
        regions: How many compiled regions the last variant must have, and no eager one.
        undriven: Why regions of the last variant have no driver; () if all have one, None if it
            does not matter.
    """
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    other = make()
    compiled = stepgraph.compile(other.step, backend="inductor", on_fallback="error")
    pairs = []
    stored: list[list[Any]] = [[], []]
    for index in range(calls):
        torch.manual_seed(index)
        batch = batches(index)
        state = torch.get_rng_state()
        expected = plain.step(*copy.deepcopy(batch))
        random = torch.get_rng_state()
        torch.set_rng_state(state)
        pairs.append((compiled(*batch), expected))
        assert torch.equal(torch.get_rng_state(), random)
        assert_close_models(other.model, plain.model)
        before, stored = stored, [grads_of(world.model) for world in (other, plain)]
        kept, by_eager = (list(map(operator.is_, *ab)) for ab in zip(stored, before, strict=True))
        assert kept == by_eager  # which gradients are still the same objects
    for result, expected in pairs:  # at the end: later calls must not touch earlier results
        assert_close(result, expected)
    explanation = compiled.explain()
    assert explanation.captured
    if regions is not None:
        found = explanation.variants[-1].regions
        assert [region.why for region in found] == [""] * regions
    if undriven is not None:
        lowered = compiled._variants[-1].rewritten.lowered.regions
        reasons = tuple(region.undriven for region in lowered if region.undriven)
        assert reasons == undriven, reasons
    return explanation


def grads_of(model: nn.Module) -> list[Any]:
    return [p.grad for p in model.parameters()]


def assert_close(a: Any, b: Any) -> None:
    if isinstance(b, torch.Tensor):
        assert a.stride() == b.stride()
        assert is_close(a.detach(), b.detach())
    elif isinstance(b, dict):
        for key in b:
            assert_close(a[key], b[key])
    elif isinstance(b, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)


def assert_close_models(ours: nn.Module, theirs: nn.Module) -> None:
    named = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    for name, tensor in (*ours.named_parameters(), *ours.named_buffers()):
        expected = named[name]
        assert is_close(tensor.detach(), expected.detach()), name
        assert (tensor.grad is None) == (expected.grad is None), name
        if expected.grad is not None:
            assert tensor.grad.stride() == expected.grad.stride(), name
            assert is_close(tensor.grad, expected.grad), f"{name}.grad"


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def rows(index: int, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6), torch.randint(3, (n,))

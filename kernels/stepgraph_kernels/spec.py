"""What an optimizer is to the two launches: its states, its scalars and one update rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Group = Mapping[str, Any]
"""A `param_group` of `torch.optim`: names of hyper-parameters and their values."""

State = dict[str, Tensor]
"""The state of one parameter, under the names that `torch.optim` gives it."""

Scalar = float | Tensor
GradientsAfter = Literal["keep", "zero", "clipped"]

MAX_STATES = 3
MAX_COEFFICIENTS = 10


@dataclass(frozen=True)
class Rule:
    """The elementwise part of an optimizer, for one choice of its structural options.

    Attributes:
        update: A `@triton.jit` function `(param, grad, a, b, c, k) -> (param, a, b, c)` on float32
            blocks. `a`, `b`, `c` are the states in order (unused ones are returned as they came);
            `k` is the tuple of coefficients that the family's `prepare` left for this tensor.
        states: The names of the states, at most three, each of the shape of the parameter.
        measure: For rules that need norms of the whole tensor: a `@triton.jit` function
            `(param, grad, a, b, k) -> (direction, a, b)` that a launch before the sweep runs. It
            writes the (two) states and leaves |param| / |direction| as the last coefficient; then
            `update` only reads the states.
        factored: Whether the states are means over the rows and columns of the parameter, which
            `AdafactorUpdate` knows how to update; `update` is None.
    """

    update: Any
    states: tuple[str, ...]
    measure: Any = None
    factored: bool = False


@dataclass(frozen=True)
class Family:
    """One optimizer, all options included.

    Attributes:
        name: The class in `torch.optim`, or the name of the method.
        prepare: A `@triton.jit` function that turns hyper-parameters (float64) and the advanced
            step into the coefficients (float32) of `update`, for a block of tensors at once.
        hyper_names: What each column of a row of hyper-parameters is, in the order `hyper` gives.
        coefficients: How many coefficients `prepare` writes for each tensor, at most ten.
        counters: Names of the float32 scalars in the state that advance with every update. The
            first counts updates; the next value of a second one is the last coefficient.
        rule: Which rule the structural options of a group ask for.
        hyper: The hyper-parameters of a group. Tensors stay on the device: nothing synchronises.
        initial_state: The state `torch.optim` would create for a parameter, counters included.
        reference: The same update in plain PyTorch: `(param, grad, state, group)`, in place.
        optional_counters: A state without counters means "has been updated before".
    """

    name: str
    prepare: Any
    hyper_names: tuple[str, ...]
    coefficients: int
    counters: tuple[str, ...]
    rule: Callable[[Group], Rule]
    hyper: Callable[[Group], tuple[Scalar, ...]]
    initial_state: Callable[[Tensor, Group], State]
    reference: Callable[[Tensor, Tensor, State, Group], None]
    optional_counters: bool = False


@dataclass
class Target:
    """One parameter of an update and everything that moves with it.

    Attributes:
        param: The weights that are read and written. With low-precision weights and a float32
            master copy this is the master, and the weights are the `shadow`.
        grad: The gradient, same shape and strides, any of the three dtypes.
        state: The states and counters of the optimizer, under torch's names. Updated.
        group: Which row of hyper-parameters is this parameter's.
        shadow: A low-precision copy of `param` to write in the same pass, or None.
        average: An exponential moving average of `param` (float32) to update, or None.
        name: What error messages call it.
    """

    param: Tensor
    grad: Tensor
    state: State = field(default_factory=dict)
    group: int = 0
    shadow: Tensor | None = None
    average: Tensor | None = None
    name: str = "parameter"


@dataclass(frozen=True)
class Tuning:
    """Choices that change speed and never results (except the order of the norm's sum: `chunk`).

    Attributes:
        block: Elements a program handles in one iteration, a power of two.
        threads: Threads of a program of the second launch: 8 elements each with the default block.
        chunk: Elements of the largest piece of a tensor one program gets; None picks it from the
            number of elements alone, so that a norm is the same on every device.
        narrow_hint: Bytes that 16-bit pointers are promised to be aligned to beside 32-bit ones.
            Eight gives all pointers the same vector of four elements; sixteen makes the compiler
            go through shared memory (reference: ahead-of-time listings; see README).
        eviction: Cache hint for what a step touches once: "" or "evict_first".
        reduce_threads: Threads of a program of the first launch.
    """

    block: int = 2048
    threads: int = 256
    chunk: int | None = None
    narrow_hint: Literal[8, 16] = 8
    eviction: Literal["", "evict_first"] = ""
    reduce_threads: int = 128


def counter(param: Tensor, value: float = 0.0) -> Tensor:
    """A counter of a new state: one float32 beside its parameter."""
    return torch.full((), value, dtype=torch.float32, device=param.device)


def zeros_like(param: Tensor, rule: Rule) -> State:
    """The states of a rule that all start at zero."""
    return {name: torch.zeros_like(param) for name in rule.states}

"""Calls of the compiled kernels, and the checks of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import is_
from pathlib import Path
from struct import pack
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stepgraph import torch_private
from stepgraph.lowering.cpp_library import library
from stepgraph.lowering.updates.torch_fused import Launch, State
from stepgraph.optimizer_facts import FUSED_CPU_KERNELS, FusedCpuRule, Group

_DTYPES = (torch.float32, torch.float64)


def compiled_kernels() -> ModuleType | str:
    """Return the compiled kernels, or why there are none."""
    return library(Path(__file__).with_name("updates.cpp"))


@dataclass
class CompiledLaunch:
    """One call of a compiled kernel; corresponds to `Launch` for torch's.

    Attributes:
        kernel: The kernel that has checked the layout of the tensors.
        function: The compiled function.
        tensors: Parameters, gradients, each kind of state, step counters; one after the other.
            All are written, gradients only where they are clipped.
        options: The hyper-parameters of this update, in the order of the function's arguments.
    """

    kernel: CompiledKernel
    function: Callable[..., None]
    tensors: tuple[Tensor, ...]
    options: tuple[Any, ...]

    kind = "compiled"

    def run(self, factor: Tensor | None) -> None:
        """Increment the counters and update, from gradients multiplied by `factor`."""
        self.kernel.run(self, factor)

    def copied(self) -> CompiledLaunch:
        """Return the same call on copies with the same strides."""
        copies = tuple(t.detach().clone() for t in self.tensors)
        return CompiledLaunch(self.kernel, self.function, copies, self.options)

    def written(self) -> Sequence[Tensor]:
        """Return the tensors that it writes, and the gradients, written where they are clipped."""
        return self.tensors


class CompiledKernel:
    """Updates the tensors of one param group, instead of a fused kernel of torch's.

    The C++ receives addresses only. `launch_first` checks the layout of the tensors, and
    `launch_as_before` checks that of later tensors against it. The options of the param group are
    read (`read`) when they have changed (`has_options_of`).

    Args:
        kernels: The module from `compiled_kernels`.
        rule: How the optimizer's kernel is called.
    """

    def __init__(self, kernels: ModuleType, rule: FusedCpuRule) -> None:
        self._functions = {name: getattr(kernels, name) for name in FUSED_CPU_KERNELS}
        self._gather, self._rule = kernels.gather, rule
        self._layout: torch_private.Layout | None = None
        self._sizes, self._is_double = b"", False
        self._checked_names: tuple[str, ...] = ()  # of the state whose layout was checked
        self._names: tuple[str, ...] = ()
        self._function: Callable[..., None] = _not_read
        self._options: tuple[Any, ...] = ()
        self._values: tuple[Any, ...] = ()  # of the param group, when its options were read

    def has_options_of(self, group: Group) -> bool:
        """Return whether a param group holds the same objects as when its options were read."""
        values, before = group.values(), self._values
        return len(values) == len(before) and all(map(is_, values, before))

    def read(self, group: Group) -> None:
        """Read the options of a param group."""
        rule, names = self._rule, self._rule.names(group)
        self._names = (*names, "step") if rule.counts else names
        self._function = self._functions[rule.kernel(group)]
        self._options = tuple(rule.options(group).values())
        options = [value for key, value in group.items() if key != "params"]
        self._values = tuple(group.values()) if all(map(_is_constant, options)) else ()

    def launch_as_before(self, params: list[Tensor], states: list[State]) -> CompiledLaunch | None:
        """Return the launch for tensors with the layout that was checked, or None for others.

        Args:
            params: The parameters of the param group. Those without a gradient are skipped.
            states: The state of each.
        """
        layout, names = self._layout, self._names
        if layout is None or names != self._checked_names:
            return None
        tensors = self._gather(params, states, names, layout.count, layout.check)
        return None if tensors is None else self._launch(tensors)

    def launch_first(self, launch: Launch) -> CompiledLaunch | None:
        """Check the tensors of a launch; return the launch of this kernel, or None if unfit.

        Args:
            launch: Dense tensors; each parameter has the sizes and strides of its gradient and
                state.
        """
        self._layout = None
        params = launch.tensors[0]
        tensors = tuple(launch.written())
        numbers = tensors[: len(tensors) - len(launch.steps)]
        counters = all(s.dtype is torch.float32 and s.numel() == 1 for s in launch.steps)
        if params[0].dtype not in _DTYPES or len({t.dtype for t in numbers}) > 1 or not counters:
            return None
        if not all(map(_is_ordinary, tensors)):
            return None
        sizes = [p.numel() for p in params]
        self._sizes = pack(f"{len(sizes)}q", *sizes)
        self._is_double = params[0].dtype is torch.float64
        self._layout, self._checked_names = torch_private.Layout(tensors), self._names
        return self._launch(tensors)

    def _launch(self, tensors: tuple[Tensor, ...]) -> CompiledLaunch:
        return CompiledLaunch(self, self._function, tensors, self._options)

    def run(self, launch: CompiledLaunch, factor: Tensor | None) -> None:
        """Increment the counters and update.

        Args:
            launch: Tensors of the layout that was checked. Written.
            factor: A factor for the gradients, `[]`, or None.
        """
        launch.function(
            self._sizes,
            self._is_double,
            torch.get_num_threads(),
            1.0 if factor is None else factor.item(),
            self._rule.counts,
            launch.tensors,
            torch_private.written,
            *launch.options,
        )


def _not_read(*_: Any) -> None:
    raise AssertionError("options are read before a launch")


def _is_constant(value: Any) -> bool:
    """Return whether a hyper-parameter is immutable, so that one object has one value."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or type(value) in (bool, int, float, str)


def _is_ordinary(tensor: Tensor) -> bool:
    """Return whether memory and strides describe a tensor: no subclass, no negative bit."""
    strided = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return strided and type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg()

"""The compiled kernels, and the tensors that they accept."""

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
        function: The number of the compiled function.
        tensors: Parameters, gradients, each kind of state, step counters; one after the other.
            All are written, gradients only where they are clipped.
        options: Current hyper-parameters, in the order of the function.
    """

    kernel: CompiledKernel
    function: Callable[..., None]
    tensors: tuple[Tensor, ...]
    options: tuple[Any, ...]

    kind = "compiled"

    def run(self, factor: Tensor | None) -> None:
        """Advance the counters and update, from gradients multiplied by `factor`."""
        self.kernel.run(self, factor)

    def copied(self) -> CompiledLaunch:
        """Return the same call on copies of the same layout."""
        copies = tuple(t.detach().clone() for t in self.tensors)
        return CompiledLaunch(self.kernel, self.function, copies, self.options)

    def written(self) -> Sequence[Tensor]:
        """Return the tensors it writes, gradients included because clipping writes them."""
        return self.tensors


class CompiledKernel:
    """Updates the tensors of one param group, instead of a fused kernel of torch's.

    A kernel receives only addresses, so it runs only on tensors whose layout was checked
    (`first`), and the tensors of every call are compared with that layout (`again`). The group's
    options are read (`read`) if they are no longer the same objects (`has_same_options`).

    Args:
        kernels: The result of `compiled_kernels`.
        rule: The signature of the optimizer's kernel.
    """

    def __init__(self, kernels: ModuleType, rule: FusedCpuRule) -> None:
        self._functions = {name: getattr(kernels, name) for name in FUSED_CPU_KERNELS}
        self._gather, self._rule = kernels.gather, rule
        self._layout: torch_private.Layout | None = None
        self._sizes, self._is_double = b"", False
        self._layout_names: tuple[str, ...] = ()  # names of the state in `_layout`
        self._names: tuple[str, ...] = ()
        self._function: Callable[..., None] = _unread
        self._options: tuple[Any, ...] = ()
        self._values: tuple[Any, ...] = ()  # values of the group, when its options were read

    def has_same_options(self, group: Group) -> bool:
        """Return whether a param group has the same option objects as when they were read."""
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

    def again(self, params: list[Tensor], states: list[State]) -> CompiledLaunch | None:
        """Return the launch for tensors of the checked layout, or None.

        Args:
            params: The parameters of the group that have a gradient.
            states: The state of each.
        """
        layout, names = self._layout, self._names
        if layout is None or names != self._layout_names:
            return None
        tensors = self._gather(params, states, names, layout.count, layout.check)
        return None if tensors is None else self._launch(tensors)

    def first(self, launch: Launch) -> CompiledLaunch | None:
        """Check the tensors of a launch; return the same launch with this kernel, or None.

        Args:
            launch: Dense tensors; a parameter, its gradient and its state have equal sizes and the
                same order of elements.
        """
        self._layout = None
        params = launch.tensors[0]
        tensors = tuple(launch.written())
        numbers = tensors[: len(tensors) - len(launch.steps)]
        counters = all(s.dtype is torch.float32 and s.numel() == 1 for s in launch.steps)
        if params[0].dtype not in _DTYPES or len({t.dtype for t in numbers}) > 1 or not counters:
            return None
        if not all(map(_is_plain, tensors)):
            return None
        sizes = [p.numel() for p in params]
        self._sizes = pack(f"{len(sizes)}q", *sizes)
        self._is_double = params[0].dtype is torch.float64
        self._layout, self._layout_names = torch_private.Layout(tensors), self._names
        return self._launch(tensors)

    def _launch(self, tensors: tuple[Tensor, ...]) -> CompiledLaunch:
        return CompiledLaunch(self, self._function, tensors, self._options)

    def run(self, launch: CompiledLaunch, factor: Tensor | None) -> None:
        """Advance the counters and update.

        Args:
            launch: Tensors of the checked layout; written.
            factor: The factor by which gradients are multiplied first, `[]`, or None.
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


def _unread(*_: Any) -> None:
    raise AssertionError("options are read before a launch")


def _is_constant(value: Any) -> bool:
    """Return whether a hyper-parameter is immutable."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or type(value) in (bool, int, float, str)


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is fully described by its memory and strides."""
    strided = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return strided and type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg()

"""The compiled kernels, and which tensors they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stepgraph import torch_private
from stepgraph.lowering.launch import Group, Launch, Rule, State
from stepgraph.lowering.library import library

_NAMES: dict[Callable[..., Any], str] = {
    torch._fused_adam_: "adam",
    torch._fused_adamw_: "adamw",
    torch._fused_sgd_: "sgd",
    torch._fused_adagrad_: "adagrad",
}
_DTYPES = (torch.float32, torch.float64)


def compiled_kernels() -> ModuleType | str:
    """Return the compiled kernels, or why there are none."""
    return library(Path(__file__).with_name("updates.cpp"))


@dataclass
class CompiledLaunch:
    """One call of a compiled kernel; what `Launch` is for torch's.

    Attributes:
        kernel: Whose layout the tensors have.
        function: Which of the compiled functions.
        tensors: Parameters, gradients, each kind of state, step counters; one after the other.
            All are written, gradients only where they are clipped.
        options: Hyper-parameters as they are now, in the order of the function.
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
        """Return what it writes: gradients, too, where they are clipped."""
        return self.tensors


class CompiledKernel:
    """Updates the tensors of one param group, in the place of a fused kernel of torch's.

    A kernel gets nothing but addresses, so it runs only on tensors of a layout that was looked at
    (`first`), and every call's tensors are compared with it (`again`).

    Args:
        kernels: Those of `compiled_kernels`.
        rule: What the optimizer gives to its kernel.
    """

    def __init__(self, kernels: ModuleType, rule: Rule) -> None:
        self._functions = {kernel: getattr(kernels, name) for kernel, name in _NAMES.items()}
        self._gather, self._rule = kernels.gather, rule
        self._layout: torch_private.Layout | None = None
        self._names: tuple[str, ...] = ()
        self._sizes, self._is_double = b"", False

    def again(
        self, group: Group, params: list[Tensor], states: list[State]
    ) -> CompiledLaunch | None:
        """Return the launch for a param group that is laid out as before, or None.

        Args:
            group: The param group.
            params: Its parameters; those without a gradient are left out.
            states: The state of each.
        """
        layout, names = self._layout, self._names
        if layout is None or self._read_by(group) != names:
            return None
        tensors = self._gather(params, states, names, layout.count, layout.check)
        return None if tensors is None else self._launch(group, tensors)

    def first(self, group: Group, launch: Launch) -> CompiledLaunch | None:
        """Look at the tensors of a launch; return the same with this kernel if it takes them.

        Args:
            group: The param group.
            launch: Its dense tensors; those that belong together have one size and one order of
                elements.
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
        self._names = self._read_by(group)
        self._layout = torch_private.Layout(tensors)
        return self._launch(group, tensors)

    def _read_by(self, group: Group) -> tuple[str, ...]:
        """Return the names of all state that is read."""
        names = self._rule.names(group)
        return (*names, "step") if self._rule.counts else names

    def _launch(self, group: Group, tensors: tuple[Tensor, ...]) -> CompiledLaunch:
        rule = self._rule
        function = self._functions[rule.kernel(group)]
        return CompiledLaunch(self, function, tensors, tuple(rule.options(group).values()))

    def run(self, launch: CompiledLaunch, factor: Tensor | None) -> None:
        """Advance the counters and update.

        Args:
            launch: Tensors of the layout that was looked at; written.
            factor: What gradients are multiplied by first, `[]`, or None.
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


def _is_plain(tensor: Tensor) -> bool:
    """Return whether memory and strides are all there is to a tensor."""
    strided = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return strided and type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg()

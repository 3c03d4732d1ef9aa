"""The compiled kernels, and which tensors they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from struct import pack
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stepgraph import torch_private
from stepgraph.lowering.library import library

_NAMES = {
    torch._fused_adam_: "adam",
    torch._fused_adamw_: "adamw",
    torch._fused_sgd_: "sgd",
    torch._fused_adagrad_: "adagrad",
}
_DTYPES = (torch.float32, torch.float64)
_STATES = 3
"""Lists of state that a kernel takes; those an optimizer does not have are empty."""


def compiled_kernels() -> ModuleType | str:
    """Return the compiled kernels, or why there are none."""
    return library(Path(__file__).with_name("updates.cpp"))


class CompiledKernel:
    """Updates one param group's tensors, in the place of a fused kernel of torch.

    A kernel gets nothing but addresses, so it runs only on tensors of a layout that was looked at
    (`takes`), and every call's tensors are compared with it.

    Args:
        kernels: Those of `compiled_kernels`.
    """

    def __init__(self, kernels: ModuleType) -> None:
        self._functions = {kernel: getattr(kernels, name) for kernel, name in _NAMES.items()}
        self._layout: torch_private.Layout | None = None
        self._sizes, self._is_double = b"", False

    def knows(self, tensors: Sequence[list[Tensor]], steps: list[Tensor]) -> bool:
        """Return whether it takes tensors because they are laid out as those before."""
        return self._layout is not None and self._layout.holds([*chain(*tensors), *steps])

    def takes(self, tensors: Sequence[list[Tensor]], steps: list[Tensor]) -> bool:
        """Look at tensors; return whether it takes them, and others of the same layout.

        Args:
            tensors: Lists of parameters, gradients and state, all dense; those that belong together
                have one size and order of elements.
            steps: Step counters, or an empty list.
        """
        params = tensors[0]
        everything = [*chain(*tensors), *steps]
        self._layout = None
        if params[0].dtype not in _DTYPES or not all(map(_is_plain, everything)):
            return False
        dtypes = {t.dtype for t in chain(*tensors)}
        counters = all(s.dtype is torch.float32 and s.numel() == 1 for s in steps)
        if len(dtypes) > 1 or not counters:
            return False
        sizes = [p.numel() for p in params]
        self._sizes = pack(f"{len(sizes)}q", *sizes)
        self._is_double = params[0].dtype is torch.float64
        self._layout = torch_private.Layout(everything)
        return True

    def __call__(
        self,
        kernel: Callable[..., Any],
        tensors: Sequence[list[Tensor]],
        steps: list[Tensor],
        options: dict[str, Any],
        factor: Tensor | None,
    ) -> None:
        """Advance the counters and update.

        Args:
            kernel: Torch's kernel, in whose place it runs.
            tensors: Lists of parameters, gradients and state, of a layout that it takes.
                Parameters and state are written; gradients if there is a `factor`.
            steps: Step counters, or an empty list; written.
            options: Those of torch's kernel, in the order of its signature.
            factor: What gradients are multiplied by first, `[]`, or None.
        """
        params, grads, *states = tensors
        self._functions[kernel](
            self._sizes,
            self._is_double,
            torch.get_num_threads(),
            1.0 if factor is None else factor.item(),
            params,
            grads,
            steps,
            *states,
            *([],) * (_STATES - len(states)),
            *options.values(),
        )
        torch_private.written([*params, *chain(*states), *(() if factor is None else grads)])


def _is_plain(tensor: Tensor) -> bool:
    """Return whether memory and strides are all there is to a tensor."""
    strided = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return strided and type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_neg()

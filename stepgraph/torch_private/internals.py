"""Small private functions and attributes of torch, each under a plain name.

Functions that a replay calls are bound once, at import.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributions import constraints
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as optimizer_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

DependentConstraint: type = constraints._Dependent
"""The class of constraints that depend on other parameters of a distribution."""

is_profiling: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
"""Return whether a profiler of torch's records this thread; takes 50 ns."""

set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
"""Switch the grad mode of this thread, without the object that `torch.set_grad_enabled` makes."""

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""Return how many dispatch modes are active in this thread."""

function_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""Return how many function modes are active in this thread."""

_GLOBAL_MODULE_HOOKS = tuple(
    getattr(nn_module, name)
    for name in (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
)
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def has_saved_tensors_hooks() -> bool:
    """Return whether hooks on saved tensors are active in this thread."""
    return _saved_tensors_hooks(False) is not None


def only_device_modes() -> bool:
    """Return whether all function modes of this thread set a default device."""
    return all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


def have_hooks(tensors: Iterable[Tensor]) -> bool:
    """Return whether autograd would call Python hooks of the user's for one of `tensors`."""
    return any(t._backward_hooks or t._post_accumulate_grad_hooks for t in tensors)


def all_modules_have_hooks() -> bool:
    """Return whether hooks are registered for every module of the process."""
    return any(_GLOBAL_MODULE_HOOKS)


def module_tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Return the dicts of a module that hold its parameters, its buffers and its children."""
    return module._parameters, module._buffers, module._modules


def optimizer_has_hooks(optimizer: Any) -> bool:
    """Return whether `optimizer.step()` would call hooks: its own, or those for all optimizers."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or optimizer_module._global_optimizer_pre_hooks
        or optimizer_module._global_optimizer_post_hooks
    )


def is_wrapped_by_schedule(step: Any) -> bool:
    """Return whether a schedule has wrapped a `step` of an optimizer, to count its calls."""
    return hasattr(step, "_wrapped_by_lr_sched")


def mark_stepped(optimizer: Any) -> None:
    """Set the flag by which a schedule checks that its optimizer has stepped before it."""
    optimizer._opt_called = True


@contextlib.contextmanager
def scaling_in_step(optimizer: Any, *, supported: bool) -> Iterator[None]:
    """Scope in which a `GradScaler` leaves unscaling and skipping to `optimizer.step()`, or not."""
    attributes: dict[str, Any] = vars(optimizer)
    name, missing = "_step_supports_amp_scaling", object()
    before = attributes.get(name, missing)
    attributes[name] = supported
    try:
        yield
    finally:
        if before is missing:
            del attributes[name]
        else:
            attributes[name] = before


def scale_tensor(scaler: GradScaler) -> Tensor | None:
    """Return the scale of a scaler, `[]`; None if it has not been used yet."""
    scale: Tensor | None = getattr(scaler, "_scale", None)
    return scale


def found_inf(scaler: GradScaler, optimizer: Any) -> dict[Any, Tensor]:
    """Return a tensor for each device, `[]` float32: above zero if a gradient was inf or nan."""
    found: dict[Any, Tensor] = scaler._found_inf_per_device(optimizer)
    return found


version_of: Callable[[Tensor], int] = attrgetter("_version")
"""Return the version counter of a tensor: the number of in-place writes that autograd counted."""


def storage_id(tensor: Tensor) -> int:
    """Return a number that is equal for two tensors, also fake ones, only if they share memory."""
    return int(tensor.untyped_storage()._cdata)


def is_batched(tensor: Tensor) -> bool:
    """Return whether `tensor` is a batched tensor inside `vmap`: one dimension is hidden."""
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def below_autograd(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return `operator` as autograd calls it, without grad mode: some kernels depend on that."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():
            return operator(*args, **kwargs)

    return call


def has_live_workers(loader: Any) -> bool:
    """Return whether the next epoch of a `DataLoader` uses the workers of the last one again."""
    return getattr(loader, "_iterator", None) is not None


def stop_workers(loader: Any) -> None:
    """Stop the workers of a `DataLoader`: its next epoch starts new ones."""
    loader._iterator = None

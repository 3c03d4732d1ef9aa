"""Copies of everything that a step may write, to restore and to compare it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

_NUMBERS = (bool, int, float, str, type(None))


class Snapshot:
    """The values of tensors and of the containers in some objects' attributes, by path.

    Args:
        tensors: Tensors by name; copied with their `.grad` and `requires_grad`.
        owners: Objects by name; the dicts, lists and tensors in their attributes are copied, other
            objects are not, except schedulers inside schedulers.
    """

    def __init__(self, tensors: Mapping[str, Tensor], owners: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = {}
        self._restore_containers: list[Callable[[], None]] = []
        self._restore_tensors: list[Callable[[], None]] = []
        self._seen: dict[int, Any] = {}
        for name, tensor in tensors.items():
            self._tensor(name, tensor)
        for name, owner in owners.items():
            self._value(name, owner.__dict__)

    def restore(self) -> None:
        """Restore the values of every container and tensor."""
        for restore in (*self._restore_containers, *self._restore_tensors):
            restore()

    def difference(self, other: Snapshot, *, besides: Collection[str] = ()) -> str | None:
        """Return the first path whose value is not equal in `other`; see `same` for tensors.

        Args:
            other: The other snapshot.
            besides: Paths that are not compared, with all paths below them.
        """
        left, right = self._besides(besides), other._besides(besides)
        for path, value in left.items():
            if path not in right or not _same_value(value, right[path]):
                return path
        return next((path for path in right if path not in left), None)

    def _besides(self, besides: Collection[str]) -> dict[str, Any]:
        """Return the values at all paths except those in or below `besides`."""
        if not besides:
            return self.values
        below = tuple(f"{path}{end}" for path in besides for end in (".", "[", " "))
        return {
            path: value
            for path, value in self.values.items()
            if path not in besides and not path.startswith(below)
        }

    def _value(self, path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(path, value)
        elif isinstance(value, dict | list | tuple | deque):
            self._container(path, value)
        elif isinstance(value, LRScheduler):
            self._container(path, value.__dict__)
        elif isinstance(value, _NUMBERS):
            self.values[path] = value

    def _container(self, path: str, value: Any) -> None:
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, dict):
            items = dict(value)
            self._restore_containers.append(lambda: _refill_dict(value, items))
            for i, (key, item) in enumerate(items.items()):
                self._value(f"{path}.{key if isinstance(key, str) else i}", item)
            return
        copied = list(value)
        if isinstance(value, list | deque):
            self._restore_containers.append(lambda: _refill_list(value, copied))
        for i, item in enumerate(copied):
            self._value(f"{path}[{i}]", item)

    def _tensor(self, path: str, tensor: Tensor) -> None:
        if id(tensor) in self._seen:
            return
        self._seen[id(tensor)] = tensor
        copied, flag = tensor.detach().clone(), tensor.requires_grad
        self.values[path] = copied
        self.values[f"{path}.stride()"] = str(tensor.stride())
        self._restore_tensors.append(lambda: _refill_tensor(tensor, copied, flag))
        if tensor.is_leaf:
            grad = tensor.grad
            self.values[f"{path}.requires_grad"] = flag
            self.values[f"{path}.grad is None"] = grad is None
            self._restore_containers.append(lambda: setattr(tensor, "grad", grad))
            if grad is not None:
                self._tensor(f"{path}.grad", grad)


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether all elements of two tensors are equal, or both NaN; 0.0 equals -0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _same_signs(a: Tensor, b: Tensor) -> bool:
    """Return whether the signs of all elements are the same, those of zeros included."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return not a.is_floating_point() or torch.equal(torch.signbit(a), torch.signbit(b))


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and same(a, b)
    return bool(type(a) is type(b) and (a == b or (a != a and b != b)))


def _refill_dict(target: dict[Any, Any], items: dict[Any, Any]) -> None:
    target.clear()
    target.update(items)


def _refill_list(target: Any, items: list[Any]) -> None:
    target.clear()
    target.extend(items)


def _refill_tensor(tensor: Tensor, copied: Tensor, flag: bool) -> None:
    with torch.no_grad():
        if not (same(tensor.detach(), copied) and _same_signs(tensor.detach(), copied)):
            # an expanded tensor cannot be written, but its base elements can
            once = tuple(slice(None) if stride else slice(1) for stride in tensor.stride())
            tensor[once].copy_(copied[once])
    if tensor.is_leaf and tensor.requires_grad != flag:
        tensor.requires_grad_(flag)

"""The values that `microbatches=n` splits, and the check that each of them can be split."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stepgraph.errors import ConfigurationError

_NUMBERS = (bool, int, float, complex, str, bytes, type(None))
_KNOWN = (nn.Module, Optimizer, LRScheduler, GradScaler, enum.Enum)
_DESCRIPTIONS = (torch.dtype, torch.device, torch.Size, torch.memory_format)


@dataclass(frozen=True)
class Microbatches:
    """How a batch is split inside a call: the number of parts, and the differences allowed.

    `stepgraph.compile(microbatches=4)` is short for `microbatches=Microbatches(4)`.

    Attributes:
        count: Number of parts. A batch of fewer samples is split into its samples.
        whole: Names of arguments that are not split: every part receives all of them.
        allow_batch_statistics: Allow a batch normalisation in training to normalise each part by
            its own statistics, and buffers to be updated once for each part.
        allow_randomness: Allow random operators such as dropout to draw once for each part. The
            numbers differ from those of one draw for the batch.

    Raises:
        ConfigurationError: `count` is not a positive integer, or `whole` not a tuple of names.
    """

    count: int
    _: dataclasses.KW_ONLY
    whole: tuple[str, ...] = ()
    allow_batch_statistics: bool = False
    allow_randomness: bool = False

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise ConfigurationError(
                "stepgraph.compile: microbatches is not a number of parts",
                found=f"microbatches={self.count!r}",
                hint="a whole number of at least 1",
            )
        if not (isinstance(self.whole, tuple) and all(isinstance(n, str) for n in self.whole)):
            raise ConfigurationError(
                "stepgraph.Microbatches: whole is not a tuple of names",
                found=f"whole={self.whole!r}",
                hint='whole=("class_weights",)',
            )

    @property
    def splits(self) -> bool:
        """Whether there is more than one part."""
        return self.count > 1

    def of(self, function: FunctionType, *, bound: bool) -> Microbatches:
        """Return a copy for a step; the first argument of a bound method, `self`, is whole.

        Raises:
            ConfigurationError: A name in `whole` is not an argument of the step.
        """
        parameters = inspect.signature(function, follow_wrapped=False).parameters
        catches_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        unknown = [name for name in self.whole if name not in parameters]
        if unknown and not catches_all:
            raise ConfigurationError(
                f"{function.__qualname__} has no argument `{unknown[0]}` to keep whole",
                found=f"whole={self.whole!r}",
                hint="one of " + ", ".join(parameters),
            )
        first = tuple(parameters)[:1] if bound else ()
        return dataclasses.replace(self, whole=(*first, *self.whole))


UNSPLIT = Microbatches(1)
"""The batch of a call is not split."""


@dataclass(frozen=True)
class Part:
    """One of the parts of a call.

    Attributes:
        index: Its position, from 0.
        count: The number of parts.
        size: Its number of samples; 1 if all parts have the same size.
        total: The number of samples of all parts; the number of parts if all have the same size.
    """

    index: int
    count: int
    size: int
    total: int

    @property
    def is_even(self) -> bool:
        """Whether all parts have the same size."""
        return self.total == self.count


def check_batch(
    function: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any], split: Microbatches
) -> None:
    """Check that the arguments of a call can be split.

    Arguments that do not fit the signature are not checked: the call itself raises the error.

    Raises:
        ConfigurationError: An argument cannot be split unambiguously.
    """
    try:
        given = inspect.signature(function, follow_wrapped=False).bind(*args, **kwargs)
    except TypeError:
        return  # the call itself raises a better error
    given.apply_defaults()
    bound = given.arguments
    others = bound.pop(inspect.getfullargspec(function).varkw or "", {})
    named = {**bound, **others}
    _Check(function.__qualname__).check({k: v for k, v in named.items() if k not in split.whole})


class _Check:
    """Checks every value in the arguments of a call."""

    def __init__(self, step: str) -> None:
        self.step = step

    def check(self, arguments: dict[str, Any]) -> None:
        found = [pair for name, value in arguments.items() for pair in self.tensors(name, value)]
        if not found:
            self.refuse(None, "no tensor with a dimension among the arguments", hint=_OUTSIDE)
        sizes = {value.shape[0]: name for name, value in found if value.shape[0] != 1}
        if len(sizes) > 1:
            (one, first), (two, second) = list(sizes.items())[:2]
            self.refuse(
                f"argument `{second}`", f"{two} along dim 0, and {one} in `{first}`", hint=_WHOLE
            )
        for name, value in arguments.items():
            self.lists(name, value, next(iter(sizes), 1))

    def tensors(self, name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors to split, by name; refuse objects that may contain tensors."""
        if isinstance(value, Tensor):
            if value.dim() and not isinstance(value, nn.Parameter):
                yield name, value
        elif is_container(value):
            for key, item in zip(keys_of(value), items_of(value), strict=True):
                yield from self.tensors(f"{name}[{key!r}]", item)
        elif not _is_whole(value):
            kind = type(value).__name__
            hint = f"a tuple, list, dict, named tuple or dataclass; or whole=({name!r},)"
            self.refuse(f"argument `{name}`", f"{kind}, which may contain tensors to split", hint)

    def lists(self, name: str, value: Any, size: int) -> None:
        """Refuse lists with one value for each sample: they would not be split."""
        items = items_of(value)
        for key, item in zip(keys_of(value) if items else (), items, strict=True):
            self.lists(f"{name}[{key!r}]", item, size)
        alone = not any(isinstance(item, Tensor) or is_container(item) for item in items)
        if type(value) in (list, tuple) and len(value) == size > 1 and alone:
            self.refuse(
                f"argument `{name}`",
                f"a {type(value).__name__} of {size} values beside {size} samples",
                hint=f"a tensor; or whole=({name!r},)",
            )

    def refuse(self, at: str | None, found: str, hint: str) -> NoReturn:
        raise ConfigurationError(
            f"the batch of {self.step} cannot be split",
            at=at,
            found=found,
            why="microbatches splits every tensor among the arguments along dim 0",
            hint=hint,
        )


_WHOLE = "stepgraph.Microbatches(n, whole=(...)) names arguments that are not split"
_OUTSIDE = "pass the batch to the step as tensors"


def is_container(value: Any) -> bool:
    """Return whether `value` is split item by item."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return True
    return type(value) in (tuple, list, dict, OrderedDict) or _is_record(value)


def keys_of(value: Any) -> list[Any]:
    """Return the keys of a container, in the order of `items_of`."""
    if isinstance(value, dict):
        return list(value)
    return _names(value) or list(range(len(value)))


def items_of(value: Any) -> list[Any]:
    """Return the items of a container; an empty list for any other value."""
    if isinstance(value, dict):
        return list(value.values())
    if not is_container(value):
        return []
    names = _names(value)
    return [getattr(value, name) for name in names] if names else list(value)


def like(value: Any, items: list[Any]) -> Any:
    """Return a container like `value` with other items."""
    if isinstance(value, dict):
        return type(value)(zip(value, items))  # noqa: B905  (traced)
    names = _names(value)
    if names:
        return type(value)(**dict(zip(names, items)))  # noqa: B905
    return tuple(items) if isinstance(value, tuple) else items


def _names(value: Any) -> list[str]:
    """Return the names of the fields of a named tuple or a dataclass."""
    if _is_record(value):
        return [field.name for field in dataclasses.fields(value)]
    return list(getattr(value, "_fields", ()))


def _is_record(value: Any) -> bool:
    """Return whether `value` is a dataclass that can be rebuilt from its fields alone."""
    # not `is_dataclass`: torch 2.11 cannot trace its read of the type of an object made in the step
    known = isinstance(getattr(value, "__dataclass_fields__", None), dict)
    if not known or isinstance(value, type | nn.Module):
        return False
    return all(field.init for field in dataclasses.fields(value))


def _is_whole(value: Any) -> bool:
    """Return whether `value` contains nothing that could be split along the batch."""
    return isinstance(value, (*_NUMBERS, *_KNOWN, *_DESCRIPTIONS)) or callable(value)

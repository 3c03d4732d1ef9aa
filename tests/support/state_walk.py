"""Where two runs of one program differ: both are walked at once, object by object.

The walk knows PyTorch's objects and nothing of stepgraph. It reaches whatever the program's
functions reach through closures, bound objects, containers and attributes. Everything is compared
exactly: the bits of a tensor (any NaN equals any other), its dtype, shape, strides, gradient;
the type of a number; the order of a dict; which two names share one object.
"""

import collections
import dataclasses
import enum
import functools
import math
import random
import types
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ATOMS = (str, bytes, int, bool, type(None), complex, enum.Enum, torch.dtype, torch.device, range)
IMMUTABLE = (tuple, frozenset, types.FunctionType, types.MethodType, weakref.ref)
OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, np.random.RandomState)


class DifferenceError(AssertionError):
    """Two runs differ; the message names the place and both values."""

    def __init__(self, path: str, eager: object, compiled: object):
        super().__init__(f"{path}\n  eager     {eager}\n  compiled  {compiled}")


def assert_same(path: str, eager: Any, compiled: Any) -> None:
    """Raise `DifferenceError` at the first difference between two objects."""
    Walk().compare(path, eager, compiled)


class Walk:
    """One walk over two object graphs, each pair of objects met once."""

    def __init__(self):
        self._partner_of_eager: dict[int, Any] = {}
        self._partner_of_compiled: dict[int, Any] = {}
        self._pairs: set[tuple[int, int]] = set()
        self._alive: list[Any] = []  # an id is only good while its object lives

    def compare(self, path: str, eager: Any, compiled: Any) -> None:
        if eager is compiled and not isinstance(eager, Tensor):
            return
        if hasattr(type(compiled), "explain"):  # a compiled step stands where the plain one stood
            return
        if type_name(eager) != type_name(compiled):
            raise DifferenceError(path, describe(eager), describe(compiled))
        if isinstance(eager, ATOMS):
            if eager != compiled:
                raise DifferenceError(path, describe(eager), describe(compiled))
        elif isinstance(eager, float | np.number):
            same_number(path, eager, compiled)
        elif isinstance(eager, OPAQUE):
            return
        elif isinstance(eager, Tensor):
            self._tensor(path, eager, compiled)
        elif not self._met(path, eager, compiled):
            self._object(path, eager, compiled)

    def _met(self, path: str, eager: Any, compiled: Any) -> bool:
        """Whether this pair was met before; objects that are one in eager must be one here."""
        if isinstance(eager, IMMUTABLE):  # whether these are shared is Python's own affair
            known = (id(eager), id(compiled)) in self._pairs
            self._pairs.add((id(eager), id(compiled)))
            self._alive += [eager, compiled]
            return known
        known = id(eager) in self._partner_of_eager
        partner = self._partner_of_eager.setdefault(id(eager), compiled)
        back = self._partner_of_compiled.setdefault(id(compiled), eager)
        if partner is not compiled or back is not eager:
            raise DifferenceError(f"{path} (identity)", "one pairing of objects", "another")
        self._alive += [eager, compiled]
        return known

    def _tensor(self, path: str, eager: Tensor, compiled: Tensor) -> None:
        own_identity = isinstance(eager, nn.Parameter)
        if own_identity and self._met(path, eager, compiled):
            return
        same_tensor(path, eager, compiled)
        detached = eager.grad_fn is not None and not compiled.requires_grad  # the one difference
        if eager.requires_grad != compiled.requires_grad and not detached:
            raise DifferenceError(
                f"{path}.requires_grad", eager.requires_grad, compiled.requires_grad
            )
        if eager.is_leaf or eager.retains_grad:
            self.compare(f"{path}.grad", eager.grad, compiled.grad)

    def _object(self, path: str, eager: Any, compiled: Any) -> None:
        if isinstance(eager, dict | types.MappingProxyType):
            self._mapping(path, eager, compiled)
        elif isinstance(eager, list | tuple | collections.deque):
            self._sequence(path, eager, compiled)
        elif isinstance(eager, set | frozenset):
            self._sequence(path, sorted(eager, key=repr), sorted(compiled, key=repr))
        elif isinstance(eager, torch.optim.Optimizer):
            self._optimizer(path, eager, compiled)
        elif isinstance(eager, torch.amp.GradScaler):
            self._scaler(path, eager, compiled)
        elif isinstance(eager, types.FunctionType | types.MethodType | functools.partial):
            self._callable(path, eager, compiled)
        elif isinstance(eager, weakref.ref):
            self.compare(f"{path}()", eager(), compiled())
        elif isinstance(eager, np.ndarray):
            if not np.array_equal(eager, compiled, equal_nan=eager.dtype.kind == "f"):
                raise DifferenceError(path, eager, compiled)
        elif isinstance(eager, torch.Generator):
            self.compare(f"{path}.get_state()", eager.get_state(), compiled.get_state())
        elif isinstance(eager, random.Random):
            self.compare(f"{path}.getstate()", eager.getstate(), compiled.getstate())
        else:
            self._attributes(path, eager, compiled)

    def _mapping(self, path: str, eager: Any, compiled: Any) -> None:
        if len(eager) != len(compiled):
            raise DifferenceError(f"{path} (keys)", describe(list(eager)), describe(list(compiled)))
        for (key, value), (other, found) in zip(eager.items(), compiled.items(), strict=True):
            self.compare(f"{path} (key)", key, other)
            self.compare(f"{path}[{describe(key)}]", value, found)

    def _sequence(self, path: str, eager: Any, compiled: Any) -> None:
        if len(eager) != len(compiled):
            raise DifferenceError(f"len({path})", len(eager), len(compiled))
        for index, (value, found) in enumerate(zip(eager, compiled, strict=True)):
            self.compare(f"{path}[{index}]", value, found)

    def _optimizer(self, path: str, eager: Any, compiled: Any) -> None:
        # in the optimizer itself, before state_dict() may bring anything up to date
        left, right = list(eager.state.values()), list(compiled.state.values())
        self.compare(f"{path}.state.values()", left, right)
        self.compare(f"{path}.param_groups", eager.param_groups, compiled.param_groups)
        self.compare(f"{path}.state_dict()", eager.state_dict(), compiled.state_dict())
        self._attributes(path, eager, compiled, besides={"state", "param_groups"})

    def _scaler(self, path: str, eager: Any, compiled: Any) -> None:
        stages = "_per_optimizer_states"  # keyed by the id of an optimizer; none if not enabled
        left, right = getattr(eager, stages, {}), getattr(compiled, stages, {})
        self.compare(f"{path}.{stages}", list(left.values()), list(right.values()))
        self.compare(f"{path}.state_dict()", eager.state_dict(), compiled.state_dict())
        self._attributes(path, eager, compiled, besides={stages})

    def _callable(self, path: str, eager: Any, compiled: Any) -> None:
        if isinstance(eager, functools.partial):
            self.compare(f"{path}.func", eager.func, compiled.func)
            self.compare(f"{path}.args", eager.args, compiled.args)
            self.compare(f"{path}.keywords", eager.keywords, compiled.keywords)
            return
        if isinstance(eager, types.MethodType):
            self.compare(f"{path}.__self__", eager.__self__, compiled.__self__)
            self.compare(path, eager.__func__, compiled.__func__)
            return
        if eager.__qualname__ != compiled.__qualname__:
            raise DifferenceError(path, eager.__qualname__, compiled.__qualname__)
        left, right = reached(eager), reached(compiled)
        for name in left.keys() | right.keys():
            self.compare(name, left.get(name, "unbound"), right.get(name, "unbound"))
        self._mapping(f"{path}.__dict__", vars(eager), vars(compiled))

    def _attributes(self, path: str, eager: Any, compiled: Any, besides: Any = ()) -> None:
        left, right = attributes(eager, besides), attributes(compiled, besides)
        if left.keys() != right.keys():
            only = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
            raise DifferenceError(
                f"{path} (attributes)", f"only here: {only[0]}", f"only here: {only[1]}"
            )
        for name, value in left.items():
            found = right[name]
            if "hooks" in name and isinstance(value, dict):  # keyed by a count of the process
                value, found = list(value.values()), list(found.values())
            self.compare(f"{path}.{name}", value, found)


def attributes(thing: Any, besides: Any = ()) -> dict[str, Any]:
    """The instance attributes of an object, without a compiled step that it may hold."""
    names = dict(getattr(thing, "__dict__", {}))
    for base in type(thing).__mro__:
        for name in getattr(base, "__slots__", ()):
            if hasattr(thing, name):
                names[name] = getattr(thing, name)
    if dataclasses.is_dataclass(thing):
        names |= {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    hidden = {"__weakref__", "__dict__", *besides}
    return {
        name: value
        for name, value in names.items()
        if name not in hidden and not hasattr(type(value), "explain")
    }


def reached(function: types.FunctionType) -> dict[str, Any]:
    """What a function reaches through its closure and its defaults."""
    found: dict[str, Any] = {"defaults": (function.__defaults__, function.__kwdefaults__)}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # an empty cell
            found[name] = "unbound"
    return found


def type_name(thing: Any) -> str:
    """A type's name: a class made twice by one function counts as one."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def describe(thing: Any) -> str:
    """A value as short text."""
    if isinstance(thing, Tensor):
        return f"tensor of shape {list(thing.shape)}, {thing.dtype}"
    text = repr(thing)
    return text if len(text) < 200 else f"{text[:200]}..."


def same_number(path: str, eager: Any, compiled: Any) -> None:
    """Raise unless two floats are the same, the sign of a zero included."""
    if math.isnan(eager) and math.isnan(compiled):
        return
    if eager != compiled or math.copysign(1, eager) != math.copysign(1, compiled):
        raise DifferenceError(path, repr(eager), repr(compiled))


def same_tensor(path: str, eager: Tensor, compiled: Tensor) -> None:
    """Raise unless two tensors have one form and the same bits."""
    for fact in ("dtype", "device", "shape", "layout", "is_leaf"):
        left, right = getattr(eager, fact), getattr(compiled, fact)
        if left != right and not (fact == "is_leaf" and eager.grad_fn is not None):
            raise DifferenceError(f"{path}.{fact}", left, right)
    if eager.layout is torch.sparse_coo:
        same_sparse(path, eager.detach(), compiled.detach())
        return
    if eager.stride() != compiled.stride():
        raise DifferenceError(f"{path}.stride()", eager.stride(), compiled.stride())
    same_bits(path, eager.detach(), compiled.detach())


def same_sparse(path: str, eager: Tensor, compiled: Tensor) -> None:
    """Raise unless two sparse tensors have the same entries."""
    if eager.is_coalesced() != compiled.is_coalesced():
        raise DifferenceError(
            f"{path}.is_coalesced()", eager.is_coalesced(), compiled.is_coalesced()
        )
    same_tensor(f"{path}._indices()", eager._indices(), compiled._indices())
    same_tensor(f"{path}._values()", eager._values(), compiled._values())


def same_bits(path: str, eager: Tensor, compiled: Tensor) -> None:
    """Raise unless two dense tensors have the same bits, all NaN being equal."""
    if eager.is_complex():
        eager, compiled = torch.view_as_real(eager), torch.view_as_real(compiled)
    equal = torch.eq(eager, compiled)
    if eager.is_floating_point():
        equal &= torch.signbit(eager) == torch.signbit(compiled)
        equal |= torch.isnan(eager) & torch.isnan(compiled)
    if bool(equal.all()):
        return
    where = (~equal).nonzero()
    first = tuple(where[0].tolist())
    count = f"{len(where)} of {equal.numel()} elements differ"
    raise DifferenceError(
        f"{path}{list(first)} ({count})", repr(eager[first].item()), repr(compiled[first].item())
    )

"""The local names of a call, as guards evaluate them: arguments and closure variables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from stepgraph.torch_private import Guards, compared_number, item_source, local_source

Args = tuple[Any, ...]
Scope = dict[str, Any]


def scope_reader(function: FunctionType) -> Callable[[Args, dict[str, Any]], Scope | None]:
    """Return a fast reader of the arguments and closure variables of `function` by name.

    The reader returns None if a call does not fit the signature or a closure variable is unset:
    the function itself then raises the right error.
    """
    bind = _binder(function)
    cells = tuple(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))

    def read(args: Args, kwargs: dict[str, Any]) -> Scope | None:
        try:
            scope = bind(*args, **kwargs)
        except TypeError:
            return None
        try:
            for name, cell in cells:
                scope[name] = cell.cell_contents
        except ValueError:
            return None
        return scope

    return read


def _binder(function: FunctionType) -> Callable[..., Scope]:
    """Return a function of the same signature that returns its arguments by name.

    Equal to `inspect.Signature.bind`, in a twentieth of its time.
    """
    kinds: dict[Any, list[str]] = {}
    for parameter in inspect.signature(function, follow_wrapped=False).parameters.values():
        bare = parameter.replace(annotation=parameter.empty, default=parameter.empty)
        kinds.setdefault(parameter.kind, []).append(str(bare))
    listed = [*kinds.get(inspect.Parameter.POSITIONAL_ONLY, ())]
    listed += ["/"] if listed else []
    listed += kinds.get(inspect.Parameter.POSITIONAL_OR_KEYWORD, ())
    only_named = kinds.get(inspect.Parameter.KEYWORD_ONLY, [])
    listed += kinds.get(inspect.Parameter.VAR_POSITIONAL, ["*"] if only_named else [])
    listed += [*only_named, *kinds.get(inspect.Parameter.VAR_KEYWORD, ())]
    source = f"lambda {', '.join(listed)}: _stepgraph_locals()"
    bind: FunctionType = eval(source, {"_stepgraph_locals": locals})
    bind.__defaults__, bind.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return bind


def globals_in(function: FunctionType, scope: Scope) -> Scope:
    """Return the globals that `function` mentions, besides modules and names in `scope`."""
    values = function.__globals__
    return {
        name: values[name]
        for name in function.__code__.co_names
        if name in values and name not in scope and not isinstance(values[name], ModuleType)
    }


def scalars_in(function: FunctionType, args: Args, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the ints and floats among the arguments, by Dynamo's name of their source."""
    scope = scope_reader(function)(args, kwargs) or {}
    found: dict[str, Any] = {}
    for name in inspect.signature(function).parameters:
        _collect(local_source(name), scope.get(name), found, depth=3)
    return found


def varied_number(guards: Guards, scope: Scope) -> str | None:
    """Return the number whose change makes `guards` fail, by Dynamo's name of its source.

    Args:
        guards: The guards of a variant.
        scope: The local names of a call that does not match it.
    """
    return compared_number(guards.failing(scope))


def _collect(name: str, value: Any, found: dict[str, Any], depth: int) -> None:
    if type(value) in (int, float):
        found[name] = value
    elif depth and type(value) is dict:
        for key, item in value.items():
            _collect(item_source(name, key), item, found, depth - 1)
    elif depth and type(value) in (list, tuple):
        for i, item in enumerate(value):
            _collect(item_source(name, i), item, found, depth - 1)

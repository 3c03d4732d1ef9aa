"""A step as a loop over the parts of its batch: Python for traces and for eager calls.

The loop is a function with the signature, the globals and the closure of the user's step, so that
a trace of it has the same names and guards as a trace of the step.
"""

from __future__ import annotations

import ast
import contextvars
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import has_side_effect

from stepgraph.capture.options.forbidden import Forbidden
from stepgraph.capture.options.microbatches import (
    Microbatches,
    Part,
    is_container,
    items_of,
    keys_of,
    like,
)
from stepgraph.errors import ConfigurationError
from stepgraph.torch_private import assume_constant_result


@torch.library.custom_op("stepgraph::part", mutates_args=())
def _part(index: int) -> None:
    """Mark in a graph where a part of a split batch begins; `flatten` makes it metadata."""


_part.register_fake(lambda index: None)
PART = torch.ops.stepgraph.part
for _operator in (PART, PART.default):
    has_side_effect(_operator)

_ALONE = "return tensors or None, alone or in containers"
FORBIDDEN_OTHER = Forbidden("returns something that is neither a tensor nor None", hint=_ALONE)
FORBIDDEN_COUNT = Forbidden(
    "returns a whole number in a tensor: neither mean nor sum is sure",
    hint="return a mean, or one number for each sample",
)
FORBIDDEN_SHAPE = Forbidden(
    "returns a tensor that is neither a scalar nor has a row for each sample",
    hint="return a mean, or one row for each sample",
)
FORBIDDEN_PATHS = Forbidden("returns different kinds of values for two parts", hint=_ALONE)

_SOURCE = """
def make({free}):
    def loop{signature}:
        def _stepgraph_step():
            return {free}
        from stepgraph.capture.options.split_loop import run as _stepgraph_run
        return _stepgraph_run(_stepgraph_step, {named}, {rest}, {keywords}, {count}, {whole})
"""


def looped(function: FunctionType, split: Microbatches) -> FunctionType:
    """Return a function that calls `function` for every part of its arguments.

    Args:
        function: The user's step, unbound.
        split: How the arguments are split.

    Returns:
        A function with the same signature, globals and closure. It returns the combined results
        of the calls, detached.
    """
    code, free = function.__code__, function.__code__.co_freevars
    tree = ast.parse(_source(function, split))
    for node in ast.walk(tree):  # give the loop the first line of the step, for error messages
        if isinstance(node, ast.stmt | ast.expr | ast.arg):
            node.lineno = node.end_lineno = code.co_firstlineno
    module = compile(tree, code.co_filename, "exec")
    made = _code_in(_code_in(module))
    own = _code_in(made)
    assert own.co_freevars == made.co_freevars == free, "compilers sort free variables"
    made = made.replace(
        co_consts=tuple(code if constant is own else constant for constant in made.co_consts),
        co_name=code.co_name,
        co_names=(*made.co_names, *code.co_names),  # so `globals_in` finds the step's globals
    )
    loop = FunctionType(
        made, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    loop.__kwdefaults__, loop.__qualname__ = function.__kwdefaults__, function.__qualname__
    return loop


def _source(function: FunctionType, split: Microbatches) -> str:
    """Return Python source that makes the loop, with a placeholder for the code of the step."""
    signature = inspect.signature(function, follow_wrapped=False)
    bare = [p.replace(default=p.empty, annotation=p.empty) for p in signature.parameters.values()]
    named: list[str] = []
    keywords: list[str] = []
    rest = "()"
    for p in bare:
        if p.kind is p.VAR_POSITIONAL:
            rest = p.name
        elif p.kind is p.VAR_KEYWORD:
            keywords.append(f"**{p.name}")
        else:
            items = keywords if p.kind is p.KEYWORD_ONLY else named
            items.append(f"{p.name!r}: {p.name}")
    return _SOURCE.format(
        free=", ".join(function.__code__.co_freevars),
        signature=inspect.Signature(bare),
        named="{" + ", ".join(named) + "}",
        rest=rest,
        keywords="{" + ", ".join(keywords) + "}",
        count=split.count,
        whole=(*split.whole, "*") if rest in split.whole else split.whole,
    )


def _code_in(code: CodeType) -> CodeType:
    """Return the code of the function that `code` defines."""
    return next(constant for constant in code.co_consts if isinstance(constant, CodeType))


_BEGIN: contextvars.ContextVar[Callable[[Part], None]] = contextvars.ContextVar("begin")


@contextmanager
def before_each_part(begin: Callable[[Part], None]) -> Iterator[None]:
    """Scope in which the loop calls `begin` before every part."""
    token = _BEGIN.set(begin)
    try:
        yield
    finally:
        _BEGIN.reset(token)


@assume_constant_result
def _begin(index: int, count: int, size: int, total: int) -> None:
    """Call the function of `before_each_part`, also during a trace."""
    _BEGIN.get()(Part(index, count, size, total))


def run(
    step: Callable[..., Any],
    named: dict[str, Any],
    rest: tuple[Any, ...],
    keywords: dict[str, Any],
    count: int,
    whole: tuple[str, ...],
) -> Any:
    """Call `step` for every part and combine the results.

    Args:
        step: The user's step.
        named: Arguments to pass by position.
        rest: Variable positional arguments, after `named`.
        keywords: Arguments to pass by keyword.
        count: Number of parts.
        whole: Names of arguments that are not split, `"*"` for `rest`.
    """
    total = _samples(named, rest, keywords, whole)
    sizes = _sizes(total, count)
    is_even = sizes[0] == sizes[-1]
    results: list[Any] = []
    start = 0
    for index, size in enumerate(sizes):
        if is_even:
            _begin(index, len(sizes), 1, len(sizes))
        else:
            _begin(index, len(sizes), size, sum(sizes))
        if torch.compiler.is_compiling():
            PART(index)
        split = start, size, total
        args = [v if n in whole else _piece(v, *split) for n, v in named.items()]
        args += rest if "*" in whole else [_piece(v, *split) for v in rest]
        kwargs = {n: v if n in whole else _piece(v, *split) for n, v in keywords.items()}
        results.append(_result(step(*args, **kwargs), size))
        start = start + size
    return combine_results(results, [] if is_even else [size / sum(sizes) for size in sizes])


def _sizes(total: int, count: int) -> list[int]:
    """Return the sizes of the parts; as constants of the trace if they differ."""
    count = count if total >= count else max(1, _constant(total))
    rest = _constant(total % count)
    if rest == 0:
        return [total // count] * count
    return [_constant(total // count) + (1 if index < rest else 0) for index in range(count)]


def _constant(number: int) -> int:
    """Return `number`; during a trace, as a constant."""
    return len(range(number))


def _samples(
    named: dict[str, Any], rest: tuple[Any, ...], keywords: dict[str, Any], whole: tuple[str, ...]
) -> int:
    """Return the number of samples: the size along dim 0 of the first tensor that is split."""
    for values in (named, keywords):
        for name, value in values.items():
            if name not in whole and (size := _size(value)) != 1:
                return size
    return 1 if "*" in whole else _size(rest)


def _size(value: Any) -> int:
    """Return the size along dim 0 of the first tensor in `value`; 1 if there is none to split."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() and not isinstance(value, nn.Parameter) else 1
    for item in items_of(value):
        if (size := _size(item)) != 1:
            return size
    return 1


def _piece(value: Any, start: int, size: int, total: int) -> Any:
    """Return the piece of `value` for one part: views of its tensors."""
    if isinstance(value, Tensor):
        return value.narrow(0, start, size) if _size(value) == total != 1 else value
    if is_container(value):
        return like(value, [_piece(item, start, size, total) for item in items_of(value)])
    return value


def _result(value: Any, size: int) -> Any:
    """Return the result of a part, detached so that its autograd graph is freed."""
    if isinstance(value, Tensor):
        if value.dim() == 0 and not (value.is_floating_point() or value.is_complex()):
            _refuse(FORBIDDEN_COUNT)
        if value.dim() > 0 and value.shape[0] != size:
            _refuse(FORBIDDEN_SHAPE)
        return value.detach()
    if is_container(value):
        return like(value, [_result(item, size) for item in items_of(value)])
    if value is not None:
        _refuse(FORBIDDEN_OTHER)
    return None


def combine_results(values: list[Any], weights: list[float]) -> Any:
    """Return the results of the parts, combined into the result of the step.

    Args:
        values: The result of each part. Scalars are averaged, other tensors are concatenated
            along dim 0.
        weights: Each part's share of the samples; empty if all are the same.
    """
    first = values[0]
    if isinstance(first, Tensor):
        if any(not isinstance(v, Tensor) or v.dim() != first.dim() for v in values):
            return _refuse(FORBIDDEN_PATHS)
        if first.dim() > 0:
            return torch.cat(values)
        parts = [v * w for v, w in zip(values, weights)]  # noqa: B905  (traced)
        parts = parts or [value / len(values) for value in values]
        return _sum(parts)
    if first is None:
        return None if all(value is None for value in values) else _refuse(FORBIDDEN_PATHS)
    if any(type(v) is not type(first) or keys_of(v) != keys_of(first) for v in values):
        return _refuse(FORBIDDEN_PATHS)
    columns = zip(*[items_of(value) for value in values])  # noqa: B905
    return like(first, [combine_results(list(column), weights) for column in columns])


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _refuse(reason: Forbidden) -> Any:
    """Refuse the result of a step; the trace, which always comes first, is stopped by `reason`."""
    raise ConfigurationError("the results of the parts cannot be combined", found=reason.reason)

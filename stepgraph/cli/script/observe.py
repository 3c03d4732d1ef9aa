"""Run a script as `__main__`, watch one of its steps for some calls, then stop it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from stepgraph.cli.script.target import OBSERVE, Target
from stepgraph.compiler import CompiledStep
from stepgraph.compiler import compile as compile_step
from stepgraph.errors import ConfigurationError, StepgraphError


class Observed:
    """What was seen of a step.

    Attributes:
        target: The step.
        calls: How often it was called.
        steps: The compiled steps behind it, one for each object whose method it is.
        latest: Arguments of the latest call, of the step in `latest_step`.
        failure: What the script died of, or None.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.calls = 0
        self.steps: list[CompiledStep] = []
        self.latest: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.latest_step: CompiledStep | None = None
        self.failure: BaseException | None = None

    def note(self, step: CompiledStep, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count a call that has succeeded."""
        self.calls += 1
        if not any(known is step for known in self.steps):
            self.steps.append(step)
        self.latest, self.latest_step = (args, kwargs), step


class _EnoughSeen(BaseException):
    """Ends the script; no `except Exception` of the script's stops it."""


def observe(target: Target, arguments: Sequence[str], calls: int) -> Observed:
    """Run the script of `target` until its step has been called `calls` times, or it ends.

    The script runs as `__main__` with `arguments`. Whatever it does until then, it does: prints,
    files, updates. Its step is compiled, with the options the script gives it if it does.

    Returns:
        What was seen, at least one call of the step. What an exception of the script would have
        printed is on stderr.

    Raises:
        ConfigurationError: The script cannot be run, or ended without calling the step.
    """
    code = _compiled(target)
    observed, own_functions = Observed(target), _Functions()
    with (
        _as_main(target, arguments) as module,
        _watched_calls(observed, own_functions, calls),
        contextlib.suppress(_EnoughSeen),
    ):
        setattr(module, OBSERVE, own_functions.observe)
        try:
            exec(code, vars(module))
        except SystemExit as ended:  # the script's own way to end
            if isinstance(ended.code, str):
                sys.stderr.write(f"{ended.code}\n")
        except Exception as error:  # the script's boundary: what it raises is its own affair
            observed.failure = error
            _print_failure(error)
    if observed.calls == 0:
        raise _never_called(observed)
    return observed


class _Functions:
    """The functions that stand in the script under the name of the step."""

    def __init__(self) -> None:
        self._codes: list[types.CodeType] = []

    def observe(self, function: Any) -> Any:
        """Decorate the step: it is compiled when it is first called, unless the script does."""
        function = getattr(function, OBSERVE, function)
        self._codes.append(function.__code__)
        return _CompiledWhenCalled(function)

    def includes(self, step: CompiledStep) -> bool:
        """Return whether `step` is the observed one, or one that a Trainer has made around it."""
        if self._wraps(step):
            return True
        inner = getattr(step.owner, "training_step", None)
        return inner is not None and self._wraps(inner)

    def _wraps(self, step: Any) -> bool:
        function = inspect.unwrap(getattr(step, "__func__", step))
        return getattr(function, "__code__", None) in self._codes


class _CompiledWhenCalled:
    """A plain function until somebody calls it; `stepgraph.compile` sees the function."""

    def __init__(self, function: types.FunctionType) -> None:
        functools.update_wrapper(self, function)
        self.__func__ = function
        self._step: CompiledStep | None = None

    @property
    def _compiled(self) -> CompiledStep:
        if self._step is None:
            self._step = compile_step(self.__func__, on_fallback="silent")
        return self._step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.__func__(*args, **kwargs)
        return self._compiled(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._compiled.__get__(instance, owner)


@contextlib.contextmanager
def _watched_calls(observed: Observed, own: _Functions, calls: int) -> Iterator[None]:
    """Scope in which calls of the step are noted, and the last one ends the script."""
    original = CompiledStep.__call__

    @functools.wraps(original)
    def call(self: CompiledStep, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if own.includes(self) and not torch.compiler.is_compiling():
            observed.note(self, args, kwargs)
            if observed.calls >= calls:
                raise _EnoughSeen
        return result

    CompiledStep.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        CompiledStep.__call__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _as_main(target: Target, arguments: Sequence[str]) -> Iterator[types.ModuleType]:
    """Scope in which the script is the main module, with its arguments and its folder in reach.

    The module stays complete after it: the steps seen in it may be called again.
    """
    module = types.ModuleType("__main__")
    module.__file__ = str(target.script)
    main, argv, path = sys.modules["__main__"], sys.argv, sys.path
    sys.modules["__main__"] = module
    sys.argv = [str(target.script), *arguments]
    sys.path = [str(target.script.resolve().parent), *path[1:]]
    try:
        yield module
    finally:
        sys.modules["__main__"], sys.argv, sys.path = main, argv, path


def _compiled(target: Target) -> types.CodeType:
    tree = target.tree()
    try:
        return compile(tree, str(target.script), "exec")
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(
            f"the script is no Python: {error}", at=str(target.script)
        ) from error


def _print_failure(error: Exception) -> None:
    """Print the traceback as Python would, without the lines that are ours."""
    frames = error.__traceback__
    traceback.print_exception(type(error), error, frames.tb_next if frames else None)


@contextlib.contextmanager
def measuring(observed: Observed) -> Iterator[None]:
    """Scope in which the observed step is called again, after its script was stopped.

    Raises:
        ConfigurationError: The step itself raises.
    """
    try:
        yield
    except StepgraphError:
        raise
    except Exception as error:  # the step's boundary: what it raises is its own affair
        script = str(observed.target.script)
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == script
        ]
        raise ConfigurationError(
            f"{observed.target.step} failed when it was called again to be measured",
            at=f"{script}:{lines[-1]}" if lines else None,
            found=f"{type(error).__name__}: {error}",
            why="the latest call is repeated, with its arguments, after the script was stopped",
        ) from error


def _never_called(observed: Observed) -> ConfigurationError:
    target = observed.target
    if observed.failure is not None:
        return ConfigurationError(
            f"{target.script} failed before it had called {target.step}",
            found=f"{type(observed.failure).__name__}: {observed.failure}",
        )
    return ConfigurationError(
        f"{target.script} never called {target.step}",
        why="there is nothing to see",
        hint=f"arguments of the script come behind --: {target} -- --epochs 1",
    )

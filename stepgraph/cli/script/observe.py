"""Run a script as `__main__`, observe some calls of one of its steps, then stop the script."""

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
    """The observed calls of a step.

    Attributes:
        target: The step.
        calls: Number of calls that have returned.
        steps: Its compiled steps, one for each object whose method it is.
        latest: Positional and keyword arguments of the latest call, of `latest_step`.
        failure: The exception that ended the script, or None.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.calls = 0
        self.steps: list[CompiledStep] = []
        self.latest: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.latest_step: CompiledStep | None = None
        self.failure: BaseException | None = None

    def record(self, step: CompiledStep, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record a call that has returned."""
        self.calls += 1
        if not any(known is step for known in self.steps):
            self.steps.append(step)
        self.latest, self.latest_step = (args, kwargs), step


class _StopScript(BaseException):
    """Ends the script; a `BaseException`, so that the script's `except Exception` lets it pass."""


def observe(target: Target, arguments: Sequence[str], calls: int) -> Observed:
    """Run the script of `target` until its step has been called `calls` times, or it ends.

    The script runs as `__main__` with `arguments` and with all its side effects: it prints,
    writes files and trains. Its step is compiled; options of the script's own `compile` apply.

    Returns:
        The observed calls, at least one. If the script raised, its traceback is on stderr.

    Raises:
        ConfigurationError: The script cannot be run, or ended without a call of the step.
    """
    code = _compiled(target)
    observed, own_functions = Observed(target), _Functions()
    with (
        _as_main(target, arguments) as module,
        _recorded_calls(observed, own_functions, calls),
        contextlib.suppress(_StopScript),
    ):
        setattr(module, OBSERVE, own_functions.observe)
        try:
            exec(code, vars(module))
        except SystemExit as ended:  # the script ended itself
            if isinstance(ended.code, str):
                sys.stderr.write(f"{ended.code}\n")
        except Exception as error:  # boundary of the user's script: any exception is possible
            observed.failure = error
            _print_failure(error)
    if observed.calls == 0:
        raise _never_called(observed)
    return observed


class _Functions:
    """The functions of the script that have the name of the step."""

    def __init__(self) -> None:
        self._codes: list[types.CodeType] = []

    def observe(self, function: Any) -> Any:
        """Decorate the step: it is compiled at its first call, unless the script compiles it."""
        function = getattr(function, OBSERVE, function)
        self._codes.append(function.__code__)
        return _CompiledWhenCalled(function)

    def includes(self, step: CompiledStep) -> bool:
        """Return whether `step` is the observed step, or a Trainer's step that calls it."""
        if self._wraps(step):
            return True
        inner = getattr(step.owner, "training_step", None)
        return inner is not None and self._wraps(inner)

    def _wraps(self, step: Any) -> bool:
        function = inspect.unwrap(getattr(step, "__func__", step))
        return getattr(function, "__code__", None) in self._codes


class _CompiledWhenCalled:
    """A function that is compiled at its first call; `stepgraph.compile` unwraps it."""

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
def _recorded_calls(observed: Observed, own: _Functions, calls: int) -> Iterator[None]:
    """Scope in which calls of the step are recorded, and the last one stops the script."""
    original = CompiledStep.__call__

    @functools.wraps(original)
    def call(self: CompiledStep, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if own.includes(self) and not torch.compiler.is_compiling():
            observed.record(self, args, kwargs)
            if observed.calls >= calls:
                raise _StopScript
        return result

    CompiledStep.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        CompiledStep.__call__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _as_main(target: Target, arguments: Sequence[str]) -> Iterator[types.ModuleType]:
    """Scope in which the script is `sys.modules["__main__"]`, with its `sys.argv` and `sys.path`.

    The module keeps its globals afterwards, because its steps may be called again.
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
            f"the script is not valid Python: {error}", at=str(target.script)
        ) from error


def _print_failure(error: Exception) -> None:
    """Print the traceback as Python does, without the frame of this file."""
    frames = error.__traceback__
    traceback.print_exception(type(error), error, frames.tb_next if frames else None)


@contextlib.contextmanager
def measuring(observed: Observed) -> Iterator[None]:
    """Scope in which the observed step is called again, after the script has stopped.

    Raises:
        ConfigurationError: The step raised.
    """
    try:
        yield
    except StepgraphError:
        raise
    except Exception as error:  # boundary of the user's step: any exception is possible
        script = str(observed.target.script)
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == script
        ]
        raise ConfigurationError(
            f"{observed.target.step} failed when it was called again to be measured",
            at=f"{script}:{lines[-1]}" if lines else None,
            found=f"{type(error).__name__}: {error}",
            why="the latest call is repeated with its arguments after the script has stopped",
        ) from error


def _never_called(observed: Observed) -> ConfigurationError:
    target = observed.target
    if observed.failure is not None:
        return ConfigurationError(
            f"{target.script} failed before its first call of {target.step}",
            found=f"{type(observed.failure).__name__}: {observed.failure}",
        )
    return ConfigurationError(
        f"{target.script} never called {target.step}",
        why="the command reports on observed calls",
        hint=f"put arguments of the script after --: {target} -- --epochs 1",
    )

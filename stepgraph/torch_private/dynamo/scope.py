"""The scope in which Dynamo traces: its configuration and its replaced functions."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast
from unittest import mock

import torch
import torch._dynamo.config as dynamo_config
from torch import _dynamo
from torch._dynamo import pgo
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables import constant
from torch._guards import TracingContext

from stepgraph.torch_private.dynamo.hooks import TraceHooks
from stepgraph.torch_private.dynamo.patches import replacements

TRACE_CONFIG: Mapping[str, Any] = {
    "trace_autograd_ops": True,  # `backward()` becomes part of the graph
    "trace_numpy": False,  # else NumPy's randomness is drawn from torch's generator
    "capture_scalar_outputs": True,  # `.item()` becomes a node
    "allow_rnn": True,
    "allow_unspec_int_on_nn_module": True,  # counters on a module: the second value is symbolic
    "rewrite_assert_with_torch_assert": False,  # keeps AssertionError an AssertionError
    "skip_nnmodule_hook_guards": False,
    "skip_no_tensor_aliasing_guards_on_parameters": False,  # two weights may be tied later
    # torch 2.11 skips tensors whose dict is unchanged, although flags or dtypes may have changed
    "skip_tensor_guards_with_matching_dict_tags": False,
    "use_recursive_dict_tags_for_guards": False,  # off in torch 2.13 as well
    "use_lamba_guard_for_object_aliasing": False,  # False: a C++ guard for each parameter
    "suppress_errors": False,
    "error_on_recompile": False,
    "enable_dynamo_decompositions": False,  # `add_(x, alpha=a)` rounds once, not twice
    "verbose": False,
    "record_runtime_overhead": False,  # True measures in every call
}

_QUIET = ("torch._guards", "torch._dynamo", "torch._subclasses.fake_tensor")
"""Silenced loggers: a refusal is not an error of the user's; eager reports the user's errors."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_COMPILER_CONFIG: Any = torch.compiler.config  # its `patch` is added at import


class TracedSizes:
    """Sizes in earlier traces of one step: a size that varies is symbolic in the next trace.

    Dynamo stores them by a function's file and line, for the whole process, so that a second model
    trained by the same code with another batch size would be captured for any size.
    """

    def __init__(self) -> None:
        self.sizes: Any = defaultdict(pgo.CodeState)


@contextlib.contextmanager
def tracing(
    hooks: TraceHooks, dynamic: Sequence[str], seen: TracedSizes, *, static: bool = False
) -> Iterator[None]:
    """Scope in which `trace` may be called; all replaced state is restored at its end.

    Args:
        hooks: The capture floor's hooks.
        dynamic: Dynamo's names of int and float inputs that vary between calls.
        seen: The sizes in earlier traces of the step. Extended.
        static: Treat every size as a constant, also one that has varied.
    """
    options = {**TRACE_CONFIG, "automatic_dynamic_shapes": not static}
    with contextlib.ExitStack() as stack:
        stack.enter_context(dynamo_config.patch(**_known(options)))
        stack.enter_context(_COMPILER_CONFIG.patch(dynamic_sources=",".join(dynamic)))
        stack.enter_context(mock.patch.object(pgo, "_CODE_STATE", seen.sizes))
        stack.enter_context(shield_constants())
        for name in _QUIET:
            stack.enter_context(mock.patch.object(logging.getLogger(name), "disabled", True))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the user's warnings belong to the eager call
        for owner, name, replacement in replacements(hooks):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def assume_constant_result(function: _Function) -> _Function:
    """Make a trace call `function` and treat its result as a constant."""
    return cast(_Function, _dynamo.assume_constant_result(function))


def is_tracing() -> bool:
    """Return whether this thread is tracing."""
    return TracingContext.try_get() is not None


def current_trace() -> Any:
    """Return an object that identifies the present trace: a new one whenever it restarts."""
    return InstructionTranslator.current_tx().output


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that this version of torch has."""
    return {name: value for name, value in options.items() if hasattr(dynamo_config, name)}


@contextlib.contextmanager
def shield_constants() -> Iterator[None]:
    """Keep Dynamo's process-wide None, True and False free of a source.

    Reading `p.grad` or `p.requires_grad` in a trace of torch 2.13 gives these singletons a
    `.source` that they keep: every later None, in any compiled function of the process, would
    then read that attribute. Torch 2.11 does not, and compares their exact type.
    """
    if torch.__version__ < "2.12":
        yield
        return
    names = ("CONSTANT_VARIABLE_NONE", "CONSTANT_VARIABLE_TRUE", "CONSTANT_VARIABLE_FALSE")
    shielded = []
    for name in names:
        variable = getattr(constant, name, None)
        if variable is not None:
            base = type(variable)
            ignored = property(lambda self: None, lambda self, value: None)
            variable.__class__ = type(base.__name__, (base,), {"source": ignored})
            shielded.append((variable, base))
    try:
        yield
    finally:
        for variable, base in shielded:
            variable.__class__ = base

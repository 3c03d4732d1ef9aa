"""The type of the parameters, where the terms of a call ask for one."""

from __future__ import annotations

from collections.abc import Iterable

from stepgraph.capture.objects.registry import OptimizerSubject, Subject
from stepgraph.capture.options.call_options import Terms
from stepgraph.errors import ConfigurationError


def check_types(terms: Terms, subjects: Iterable[Subject]) -> None:
    """Check that every parameter that is updated has the type that the terms ask for.

    Raises:
        ConfigurationError: One has another; nothing has run.
    """
    if terms.dtype is None:
        return
    for subject in subjects:
        for parameter in subject.parameters if isinstance(subject, OptimizerSubject) else ():
            if parameter.is_floating_point() and parameter.dtype != terms.dtype:
                raise ConfigurationError(
                    "the precision of a step and the type of its parameters do not go together",
                    at=f"a parameter of {subject.label} of shape {list(parameter.shape)}",
                    found=f"{parameter.dtype}, the precision asks for {terms.dtype}",
                    why="a step in low precision throughout updates the parameters as they are",
                    hint='model.bfloat16() before the optimizer is made; "bf16-mixed" keeps '
                    "float32 parameters and casts what it computes with",
                )

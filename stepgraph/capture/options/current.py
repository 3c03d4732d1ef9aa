"""The options in effect during a trace: those of the call, or of a part of a split batch."""

from __future__ import annotations

from typing import Any

from stepgraph.capture.options.call_options import CallOptions
from stepgraph.capture.options.forbidden import Forbidden
from stepgraph.torch_private import (
    Inlined,
    assume_constant_result,
    clip_norm,
    clip_value,
    scale_to_norm,
)


class Current:
    """Holds the options in effect at this point of the trace."""

    options = CallOptions()


CURRENT = Current()

_FORBIDDEN_CLIP = Forbidden(
    "clips by hand gradients that are scaled; clip_norm clips the true ones"
)


@assume_constant_result
def _updates() -> bool:
    """Return, during the trace, whether updates have an effect at this point."""
    return CURRENT.options.updates


@assume_constant_result
def _divisor() -> int:
    """Return the number by which the seed of a backward is divided at this point."""
    return CURRENT.options.divisor


@assume_constant_result
def _weight() -> float:
    """Return the factor of the divided seed at this point."""
    return CURRENT.options.weight


# Dynamo stores the results of these functions in the globals of the step, under their names;
# `capture` removes names that begin with an underscore.
updates, divisor, weight = _updates, _divisor, _weight


def clipping_stand_ins(options: CallOptions) -> tuple[Inlined, ...]:
    """Return the functions that a trace inlines for torch's clipping functions.

    Only the last call of a window, and the last part of a split batch, may clip. If gradients are
    scaled, clipping by hand is refused.
    """
    if options.scaler is not None:
        return Inlined(clip_norm, refuse_clipping), Inlined(clip_value, refuse_clipping)
    if options.split.splits:
        norm, value = _scale_in_last_part, _clip_in_last_part
    elif not options.updates:
        norm = value = clip_nothing
    else:
        return ()
    # a user's own call of `clip_grads_with_norm_` clips in every call, as it does eagerly
    return Inlined(scale_to_norm, norm, caller=clip_norm.__code__), Inlined(clip_value, value)


def clip_nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing, in place of a function that clips gradients."""


def refuse_clipping(*args: Any, **kwargs: Any) -> None:
    """Refuse the step."""
    _FORBIDDEN_CLIP.refuse()


def _scale_in_last_part(*args: Any, **kwargs: Any) -> None:
    if updates():
        scale_to_norm(*args, **kwargs)


def _clip_in_last_part(*args: Any, **kwargs: Any) -> None:
    if updates():
        clip_value(*args, **kwargs)

"""Where a trace is: on whose terms it goes on, those of the call or of a part of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import clip_grad

from stepgraph.capture.options.call_options import Terms
from stepgraph.torch_private import assume_constant_result

_clip_to_norm = clip_grad._clip_grads_with_norm_
_clip_value = torch.nn.utils.clip_grad_value_.__wrapped__  # type: ignore[attr-defined]


class Place:
    """The terms on which the trace goes on."""

    terms = Terms()


PLACE = Place()


@assume_constant_result
def _updates() -> bool:
    """Ask, while the trace goes on, whether updates do something here."""
    return PLACE.terms.updates


@assume_constant_result
def _divisor() -> int:
    """Ask by what the seed of a backward is divided here."""
    return PLACE.terms.divisor


@assume_constant_result
def _weight() -> float:
    """Ask by what it is multiplied then."""
    return PLACE.terms.weight


# the names of these functions: what `capture` clears away begins with an underscore
updates, divisor, weight = _updates, _divisor, _weight


def clip_to_norm_in_time(*args: Any, **kwargs: Any) -> None:
    """Trace torch's `_clip_grads_with_norm_` in a split call: only its last part may clip."""
    if updates():
        _clip_to_norm(*args, **kwargs)


def clip_value_in_time(*args: Any, **kwargs: Any) -> None:
    """Trace torch's `clip_grad_value_` in a split call: only its last part may clip."""
    if updates():
        _clip_value(*args, **kwargs)

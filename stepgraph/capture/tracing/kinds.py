"""The kind of a node, from the code that was traced when the node was made."""

from __future__ import annotations

from collections.abc import Iterable
from types import CodeType

from stepgraph.capture.objects.optimizer import ZERO_GRAD_CODE
from stepgraph.capture.tracing.backward import BACKWARD_CODES
from stepgraph.effects import Kind
from stepgraph.torch_private import CLIP_CODES, NORM_CODES

_KINDS = {
    **dict.fromkeys(BACKWARD_CODES, Kind.BACKWARD),
    ZERO_GRAD_CODE: Kind.ZERO_GRAD,
}


def kind_of(codes: Iterable[CodeType]) -> Kind:
    """Return the kind of a node.

    Args:
        codes: The code of the functions that were being traced when the node was made, the step
            first. Functions are compared by identity: a file or a function of the user's may have
            any name.
    """
    traced = list(codes)
    if not NORM_CODES.isdisjoint(traced):
        return Kind.GRAD_NORM
    if not CLIP_CODES.isdisjoint(traced):
        return Kind.CLIP
    known = (_KINDS[code] for code in reversed(traced) if code in _KINDS)
    return next(known, Kind.FORWARD)

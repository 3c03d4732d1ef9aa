"""The reasons why a step is not captured, with messages for its author."""

from __future__ import annotations

import copy
import re
from typing import NoReturn

from stepgraph import torch_private
from stepgraph.torch_private import TraceStop


class Refusal(TraceStop):
    """A named reason to run a step eagerly.

    Attributes:
        reason: What the step does, in a few words.
        at: The user's `file:line`, if known.
        hint: A change with which the step can be captured.
        has_own_loop: Whether an optimizer such as LBFGS calls the closure in a loop of its own;
            the closure itself can be captured.
    """

    def __init__(
        self,
        reason: str,
        at: str | None = None,
        hint: str | None = None,
        *,
        has_own_loop: bool = False,
    ) -> None:
        super().__init__(reason, at, hint)
        self.reason, self.at, self.hint = reason, at, hint
        self.has_own_loop = has_own_loop

    def without_frames(self) -> Refusal:
        """Return an equal refusal that may be stored: without traceback and chained exceptions.

        A traceback keeps the frames of its call alive, and so the call's batch; it grows whenever
        the exception is raised again.
        """
        return copy.copy(self)  # of the same class, with its attributes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refusal) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)

    def __str__(self) -> str:
        return f"{self.reason} ({self.at})" if self.at else self.reason


def refuse(reason: str) -> NoReturn:
    """Refuse the step."""
    raise Refusal(reason)


_NAMED: tuple[tuple[str, str, str | None], ...] = (
    # what Dynamo's message contains, the reason, what to try
    (
        r"Data-dependent|data-dependent|GuardOnDataDependent|Could not guard|Could not extract",
        "data-dependent branch: Python decides by the value of a tensor",
        "torch.where, or decide outside the step",
    ),
    (r"builtin.*print|reorderable_logging.*print", "calls print inside the step", "return it"),
    (
        r"qualname: Random\.|module: random,",
        "host randomness: `random` is called inside the step",
        "draw outside the step and pass the number, or draw from torch",
    ),
    (
        r"manual_seed|rng_state|fork_rng",
        "host randomness: seeds, or uses a random state, inside the step",
        "seed outside",
    ),
    (r"Generator", "host randomness: uses a torch.Generator inside the step", None),
    (r"_warnings\.warn|module: _warnings", "warns inside the step", "warn outside"),
    (r"register_hook|_hooks|backward hook", "hooks that a trace would lose", None),
    (r"numpy|np\.", "calls NumPy inside the step", "compute with torch"),
    (r"__objclass__", "a tensor subclass whose functions torch 2.11 cannot trace", None),
    (r"sparse|Sparse", "sparse gradients or tensors", None),
    (r"modified by an inplace operation", "backward through a tensor that was changed", None),
)

_SKIPPED = re.compile(r"marked as skipped.*qualname: ([\w.<>]+),", re.DOTALL)
_DETAILS = re.compile(r"For more details about this graph break.*", re.DOTALL)


def refusal_of(error: BaseException) -> Refusal:
    """Translate any exception of a failed capture."""
    if isinstance(error, Refusal):
        return error
    message = _DETAILS.sub("", str(error))  # the removed part quotes the user's own lines
    at = _user_line(error)
    for pattern, reason, hint in _NAMED:
        if re.search(pattern, message):
            return Refusal(reason, at, hint)
    skipped = _SKIPPED.search(message)
    if skipped is not None:
        return Refusal(f"calls {skipped[1]}, which cannot be traced", at)
    first = next((line.strip() for line in message.splitlines() if line.strip()), "")
    kind = "cannot be traced" if torch_private.is_unsupported(error) else type(error).__name__
    return Refusal(f"{kind}: {first}" if first else kind, at)


def _user_line(error: BaseException) -> str | None:
    for frame in reversed(list(torch_private.user_stack(error) or ())):
        if not torch_private.is_internal(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return None

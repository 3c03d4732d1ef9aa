"""The contents of Dynamo's exceptions."""

from __future__ import annotations

from typing import Any

from torch._dynamo import exc


def is_unsupported(error: BaseException) -> bool:
    """Return whether `error` is Dynamo's error for code that it cannot trace."""
    return isinstance(error, exc.TorchDynamoException)


def user_stack(error: BaseException) -> Any:
    """Return the user's stack at the point where Dynamo stopped, or None."""
    return getattr(error, "real_stack", None)

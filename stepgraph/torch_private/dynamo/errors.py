"""What Dynamo's exceptions say."""

from __future__ import annotations

from typing import Any

from torch._dynamo import exc


def is_unsupported(error: BaseException) -> bool:
    """Return whether `error` is Dynamo saying that it cannot trace something."""
    return isinstance(error, exc.TorchDynamoException)


def user_stack(error: BaseException) -> Any:
    """Return the user's stack at the place where Dynamo gave up, or None."""
    return getattr(error, "real_stack", None)

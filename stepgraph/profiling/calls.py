"""How many operators are called: what a host has to launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCalls(TorchDispatchMode):
    """Counts the calls of operators that compute something, those inside of optimizers too.

    Views do not count, nor the spans that optimizers open for a profiler, nor code that a compiler
    has made, but for the operators it calls.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func.namespace != "profiler" and not _is_view(func)
        return func(*args, **(kwargs or {}))


class CallsBetweenMarks:
    """Counts operator calls between the marks of a program; its `mark` is for `with_marks`.

    The mode that counts is entered at the first mark and left at the last one, because a call of a
    compiled step is none under a mode.

    Args:
        sections: How many sections the program has.
    """

    def __init__(self, sections: int) -> None:
        self._sections = sections
        self._counts: list[int] = []
        self._mode: OperatorCalls | None = None

    def mark(self, index: int) -> None:
        """Note how many calls there were until now."""
        if self._mode is None:
            self._mode = OperatorCalls()
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        self._counts.append(self._mode.count)
        if index == self._sections:
            self.close()

    def close(self) -> None:
        """Leave the mode, also when the call did not come to its end."""
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def count(self, call: Callable[[], None]) -> list[int]:
        """Make a call with these marks and return how many operators each section has called."""
        try:
            call()
        finally:
            self.close()
        return [b - a for a, b in zip(self._counts, self._counts[1:], strict=False)]


def operator_calls(call: Callable[[], Any]) -> int | None:
    """Return how many operators a call calls; None if it cannot be called under a mode."""
    mode = OperatorCalls()
    try:
        with mode:
            call()
    except Exception:  # whatever it is: a number for a report is not worth an error
        return None
    return mode.count


def _is_view(operator: Any) -> bool:
    returns = operator._schema.returns
    return bool(returns) and all(
        spec.alias_info is not None and not spec.alias_info.is_write for spec in returns
    )

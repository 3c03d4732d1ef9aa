"""Counts of operator calls: the launches of a call, of a section, of an eager step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCalls(TorchDispatchMode):
    """Dispatch mode that counts the calls of operators that compute something.

    Operators inside of an optimizer's step count too. Views, the profiler spans that optimizers
    open, and generated code do not; the operators that generated code calls do.
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
    """Counts operator calls between the marks of a program; pass its `mark` to `with_marks`.

    The counting mode is entered at the first mark and left at the last one: a compiled step called
    under a dispatch mode runs eagerly.

    Args:
        sections: Number of sections of the program.
    """

    def __init__(self, sections: int) -> None:
        self._sections = sections
        self._counts: list[int] = []
        self._mode: OperatorCalls | None = None

    def mark(self, index: int) -> None:
        """Record the number of calls so far."""
        if self._mode is None:
            self._mode = OperatorCalls()
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        self._counts.append(self._mode.count)
        if index == self._sections:
            self.close()

    def close(self) -> None:
        """Leave the mode if it is entered; needed after a call that raised."""
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def count(self, call: Callable[[], None]) -> list[int]:
        """Run `call`, which reports these marks; return the operator calls of each section."""
        try:
            call()
        finally:
            self.close()
        return [b - a for a, b in zip(self._counts, self._counts[1:], strict=False)]


def operator_calls(call: Callable[[], Any]) -> int | None:
    """Return the number of operators that `call` runs; None if it fails under a dispatch mode."""
    mode = OperatorCalls()
    try:
        with mode:
            call()
    except Exception:  # of any type: the number is optional in a report
        return None
    return mode.count


def _is_view(operator: Any) -> bool:
    returns = operator._schema.returns
    return bool(returns) and all(
        spec.alias_info is not None and not spec.alias_info.is_write for spec in returns
    )

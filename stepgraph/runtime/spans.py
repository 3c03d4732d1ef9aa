"""Spans for the nodes of a step in profiles of `torch.profiler`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch.profiler import record_function

Mark = Callable[[int], None]
Marked = tuple[Sequence[str], Callable[..., Any]]


class Spans:
    """A program with a span for every node, made on its first use under a profiler.

    Args:
        title: The name of the span around all others.
        make: Takes a function to call with `i` before node i, and with the number of nodes at the
            end; returns the names of the nodes in program order and the program's function.
    """

    def __init__(self, title: str, make: Callable[[Mark], Marked]) -> None:
        self._title, self._make = title, make
        self._marked: Marked | None = None
        self._open = threading.local()

    def __call__(self, *inputs: Any) -> Any:
        """Perform the step."""
        if self._marked is None:
            self._marked = self._make(self._mark)
        with record_function(self._title):
            try:
                return self._marked[1](*inputs)
            finally:
                self._close()

    def _mark(self, index: int) -> None:
        self._close()
        assert self._marked is not None
        names = self._marked[0]
        if index < len(names):
            self._open.span = record_function(names[index])
            self._open.span.__enter__()

    def _close(self) -> None:
        span = getattr(self._open, "span", None)
        if span is not None:
            self._open.span = None
            span.__exit__(None, None, None)

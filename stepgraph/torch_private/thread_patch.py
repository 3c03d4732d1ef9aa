"""Replacement of a function of torch in one thread, without an effect on other threads."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any


class ThreadPatch:
    """A replaceable function of torch.

    While any thread has replaced it, the attribute holds a dispatcher, which calls the replacement
    of the calling thread, or else the original.

    Args:
        owner: A module, or a cell.
        name: The attribute that holds the function.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._lock = threading.Lock()
        self._scopes = 0
        self._local = threading.local()
        self._original: Callable[..., Any] = getattr(owner, name)
        self._dispatcher: Callable[..., Any] | None = None

    @contextlib.contextmanager
    def replaced_by(self, replacement: Callable[..., Any]) -> Iterator[None]:
        """Scope in which this thread calls `replacement`; scopes nest."""
        self._enter()
        stack = self._stack()
        stack.append(replacement)
        try:
            yield
        finally:
            stack.pop()
            self._leave()

    @property
    def current(self) -> Callable[..., Any]:
        """The function that this thread calls: the innermost replacement, or the original."""
        stack = self._stack()
        return stack[-1] if stack else self._original

    def _stack(self) -> list[Callable[..., Any]]:
        stack: list[Callable[..., Any]] | None = getattr(self._local, "stack", None)
        if stack is None:
            stack = self._local.stack = []
        return stack

    def _enter(self) -> None:
        with self._lock:
            if self._scopes == 0:
                self._original = getattr(self._owner, self._name)
                self._dispatcher = _dispatching(self, self._original)
                setattr(self._owner, self._name, self._dispatcher)
            self._scopes += 1

    def _leave(self) -> None:
        with self._lock:
            self._scopes -= 1
            # the user's code may have wrapped the dispatcher, which then calls the original
            if self._scopes == 0 and getattr(self._owner, self._name) is self._dispatcher:
                setattr(self._owner, self._name, self._original)


def _dispatching(patch: ThreadPatch, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        return patch.current(*args, **kwargs)

    return dispatch

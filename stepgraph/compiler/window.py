"""The window: the calls that make one update together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stepgraph.capture import CallOptions
from stepgraph.errors import CheckpointError


class Window:
    """The position of a compiled step between two updates.

    Args:
        call_options: The options that do not depend on the position in the window.

    Attributes:
        index: Number of calls of the present window so far.
        call_options: The options of the next call. One object for each position, so that `is`
            compares them.
        latest: Arguments of the latest call, kept while the window is open.
    """

    def __init__(self, call_options: CallOptions) -> None:
        self.length = call_options.micro_batches
        first = replace(call_options, updates=self.length == 1)
        middle, last = replace(first, clears=False), replace(call_options, clears=self.length == 1)
        self._first, self._middle, self._last = first, middle, last
        self.latest: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.restart(0)

    @property
    def last_call_options(self) -> CallOptions:
        """The options of the call that updates."""
        return self._last

    def restart(self, index: int) -> None:
        """Set the position in the window."""
        self.index = index
        if index == self.length - 1:
            self.call_options = self._last
        else:
            self.call_options = self._middle if index else self._first
        if index == 0:
            self.latest = ((), {})

    def advance(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count a call that has succeeded."""
        if self.length > 1:
            self.restart((self.index + 1) % self.length)
            if self.index:
                self.latest = args, kwargs

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the window, and the loss scale if there is one."""
        state = {"position": self.index, "accumulate": self.length}
        scaler = self.call_options.scaler
        return state if scaler is None else {**state, "scaler": scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position and a loss scale returned by `state_dict`.

        Raises:
            CheckpointError: The state belongs to a window of another length.
        """
        if state["accumulate"] != self.length:
            raise CheckpointError(
                "the state belongs to another window",
                found=f"accumulate={state['accumulate']}, here {self.length}",
                why="gradients were seeded for a window of that length",
                hint=f"accumulate={state['accumulate']}",
            )
        self.restart(int(state["position"]))
        if self.call_options.scaler is not None:
            self.call_options.scaler.load_state_dict(state["scaler"])

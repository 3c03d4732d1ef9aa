"""A compiled step that notes which of its calls replayed, and changes between its calls."""

from collections.abc import Callable, Sequence
from typing import Any

import stepgraph

CHANGED, UNDONE = 4, 6
"""The calls before which something changes, and changes back."""


class ReplayLog:
    """Stands for `stepgraph.compile` in `same_as_eager`."""

    def __init__(self, step: Any, **options: Any):
        self.compiled = stepgraph.compile(step, **options)
        self.replayed: list[bool] = []  # for each call so far

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = self.explain().replays
        try:
            return self.compiled(*args, **kwargs)
        finally:
            self.replayed.append(self.explain().replays > before)

    def explain(self) -> Any:
        return self.compiled.explain()


def between(change: Callable[[Any], Callable[[], Any] | None], world: Any) -> Callable[[int], None]:
    """Return what makes a change of `world` and, where that returned how, undoes it later."""
    undo: list[Callable[[], Any] | None] = []

    def make(index: int) -> None:
        if index == CHANGED:
            undo.append(change(world))
        if index == UNDONE and undo[0] is not None:
            undo[0]()

    return make


def in_turn(
    changes: Sequence[Callable[[Any], Callable[[], Any] | None]], world: Any
) -> Callable[[int], None]:
    """Return what makes one change after the other, so that one capture serves all.

    Each is made before call `CHANGED + 4 * i`, and undone two calls later if it returned how.
    """
    undo: list[Callable[[], Any] | None] = []

    def make(index: int) -> None:
        turn, place = divmod(index - CHANGED, 4)
        if turn >= 0 and place == 0:
            undo.append(changes[turn](world))
        if turn >= 0 and place == UNDONE - CHANGED and undo[-1] is not None:
            undo[-1]()

    return make


def calls_in_turn(changes: Sequence[Any]) -> int:
    """Return how many calls `in_turn` needs."""
    return CHANGED + 4 * len(changes)


def missed_in_turn(step: ReplayLog, names: Sequence[str], places: Sequence[int]) -> list[str]:
    """Return the changes whose calls at `places`, counted from the change, did not replay."""
    assert step.replayed[2:CHANGED] == [True, True]
    return [
        f"call {place} of {name}"
        for turn, name in enumerate(names)
        for place in places
        if not step.replayed[CHANGED + 4 * turn + place]
    ]


def assert_replays_again(step: ReplayLog) -> None:
    """Assert that a step replayed before a change and replays at last, after few captures."""
    assert step.replayed[2:CHANGED] == [True, True]
    assert step.replayed[-1]
    assert step.explain().captures <= 4

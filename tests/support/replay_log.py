"""A compiled step that notes which of its calls replayed, and changes between its calls."""

from collections.abc import Callable
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


def assert_replays_again(step: ReplayLog) -> None:
    """Assert that a step replayed before a change and replays at last, after few captures."""
    assert step.replayed[2:CHANGED] == [True, True]
    assert step.replayed[-1]
    assert step.explain().captures <= 4

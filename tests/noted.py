"""A compiled step that notes which of its calls replayed."""

from typing import Any

import stepgraph


class Noted:
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

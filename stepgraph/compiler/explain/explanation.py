"""`Explanation`: the result of `CompiledStep.explain()`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepgraph.compiler import extensions
from stepgraph.compiler.explain.advice import Advice, advice
from stepgraph.compiler.explain.reports import ExplanationData
from stepgraph.compiler.explain.text import describe, verdict
from stepgraph.passes import NOT_IN_DICT

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Explanation(ExplanationData):
    """The result of `CompiledStep.explain()`; prints itself.

    Attributes:
        name: The step's name.
        captured: Whether at least one variant has replayed.
        captures: Number of variants made.
        calls: Number of calls so far.
        replays: Number of calls that replayed a variant.
        fallback_reason: The latest reason to run eagerly, or None.
        fallbacks: All reasons, with counts.
        variants: One report for each variant.
        closures: Explanations of the closures of optimizers with their own loop (LBFGS).
        first_call_ms: Time of the first, eager call; includes lazy set-up, not comparable.
        options: The options of `compile` that are not the default.
        graphs: For each variant the step graph as captured and the one after the passes.
    """

    closures: tuple[Explanation, ...] = ()

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        """Changes with which the step would run faster or use less memory."""
        return advice(self)

    @property
    def verdict(self) -> str:
        """A summary of what was captured."""
        return verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation, but for its graphs, as dicts, lists, strings and numbers."""
        plain: dict[str, Any] = _plain(self._without_graphs())
        for variant, own in zip(plain["variants"], self.variants, strict=True):
            variant["sentence"] = own.sentence
        return plain | {"advice": [dataclasses.asdict(one) for one in self.advice]}

    def to_html(self, path: str | Path, profile: Any = None) -> None:
        """Write a self-contained HTML report.

        Args:
            path: The file to write; replaced if it exists.
            profile: A `Profile` of the step: adds the times of nodes, a timeline and a table of
                operators.

        Raises:
            OSError: The file cannot be written.
        """
        extensions.to_html(self, path, profile)

    def _without_graphs(self) -> Explanation:
        closures = tuple(closure._without_graphs() for closure in self.closures)
        return dataclasses.replace(self, graphs=(), closures=closures)

    def __str__(self) -> str:
        return describe(self, self.advice)

    def __rich__(self) -> RenderableType:
        shown: RenderableType = extensions.to_rich(self)
        return shown


def _plain(value: Any) -> Any:
    """Return `value` with dicts in the place of reports and lists in the place of tuples."""
    if dataclasses.is_dataclass(value):
        shown = [f.name for f in dataclasses.fields(value) if f.metadata != NOT_IN_DICT]
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

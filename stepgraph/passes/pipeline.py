"""The pipeline: runs passes in order, times them, verifies after each, records what they did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from stepgraph.analysis import work
from stepgraph.errors import VerifyError
from stepgraph.ir import Meaning, StepGraph, flatten, meaning
from stepgraph.passes.base import Pass


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        name: The pass with its options.
        ms: Time it took, verification not included.
        nodes_before: Typed nodes it was given.
        nodes_after: Typed nodes it left.
        operators_before: ATen operators and effects it was given.
        operators_after: ATen operators and effects it left.
        flops_saved: Floating-point operations of products that are gone.
        lost: Resources that the step does not write any more, for example `grad:D.0.weight`.
        launches_saved: Operators and updates that compute something and are gone; see `Work`.
        bytes_saved: Bytes that are not read and written any more, operators run one by one.
        did: What the pass says it did, in its own words; see `StepGraph.say`.
    """

    name: str
    ms: float
    nodes_before: int
    nodes_after: int
    operators_before: int
    operators_after: int
    flops_saved: int = 0
    lost: tuple[str, ...] = ()
    launches_saved: int = 0
    bytes_saved: int = 0
    did: tuple[str, ...] = ()

    @property
    def acted(self) -> bool:
        """Whether the number of nodes or operators changed, or the pass says that it did."""
        before = (self.nodes_before, self.operators_before)
        return bool(self.did) or before != (self.nodes_after, self.operators_after)


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order they run.

    Example:
        >>> Pipeline(()).then().passes
        ()
    """

    passes: tuple[Pass, ...] = ()

    def then(self, *passes: Pass) -> Pipeline:
        """Return a pipeline that runs `passes` after these."""
        return Pipeline((*self.passes, *passes))

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __call__(self, step: StepGraph) -> tuple[StepGraph, tuple[PassRecord, ...]]:
        """Run every pass.

        Args:
            step: Verifies. May be changed.

        Returns:
            The rewritten step and one record for each pass.

        Raises:
            VerifyError: A pass left a step that is malformed, or that means something else.
        """
        records = []
        expected = meaning(step)
        size, done = _size(step), work(flatten(step))
        for applied in self.passes:
            start = time.perf_counter()
            step = applied(step)
            ms = (time.perf_counter() - start) * 1e3
            _verify(step, applied, expected if applied.keeps_effects else None)
            before, expected = expected, meaning(step)
            after, left = _size(step), work(flatten(step))
            records.append(
                PassRecord(
                    name=repr(applied),
                    ms=ms,
                    nodes_before=size[0],
                    nodes_after=after[0],
                    operators_before=size[1],
                    operators_after=after[1],
                    flops_saved=done.flops - left.flops,
                    lost=_lost(before, expected),
                    launches_saved=done.launches - left.launches,
                    bytes_saved=done.bytes - left.bytes,
                    did=step.said(),
                )
            )
            size, done = after, left
        return step, tuple(records)


def _lost(before: Meaning, after: Meaning) -> tuple[str, ...]:
    """Return the resources that fewer effects write than before, in order."""
    gone = before.effects - after.effects
    return tuple(dict.fromkeys(resource for _, resources in gone for resource in resources))


def _verify(step: StepGraph, applied: Pass, expected: Meaning | None) -> None:
    try:
        step.verify(against=expected)
    except VerifyError as error:
        raise VerifyError(
            f"{applied!r} left a step graph that does not verify: {error.what}",
            at=error.at,
            found=error.found,
            why=error.why,
            hint="take the pass out of the pipeline, and report it",
        ) from error


def _size(step: StepGraph) -> tuple[int, int]:
    """Return the numbers of typed nodes and of operators."""
    typed = [node for node in step.nodes if step.kind(node) is not None]
    regions = [region for region in map(step.region, typed) if region is not None]
    inner = sum(n.op == "call_function" for region in regions for n in region.graph.nodes)
    return len(typed), inner + len(typed) - len(regions)

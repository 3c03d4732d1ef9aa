"""The pipeline: runs passes in order, times, verifies and records each."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from stepgraph.analysis import Work, work
from stepgraph.errors import VerifyError
from stepgraph.ir import Meaning, Remark, StepGraph, meaning
from stepgraph.ir.views.verify import compare
from stepgraph.passes.base import Pass

NOT_IN_DICT: Mapping[str, bool] = {"stepgraph.not_in_dict": True}
"""Metadata of a field that `to_dict()` omits: reasons as values, which a sentence repeats."""


@dataclass(frozen=True)
class PassRecord:
    """The changes made by one pass.

    Attributes:
        name: The pass with its options.
        ms: Time it took, verification not included.
        nodes_before: Number of typed nodes before the pass.
        nodes_after: The same, after the pass.
        operators_before: Number of ATen operators and effects before the pass.
        operators_after: The same, after the pass.
        flops_saved: Floating-point operations of removed matrix products.
        lost: Resources that the step no longer writes, for example `grad:D.0.weight`.
        launches_saved: Number of removed operators and updates that compute something; see `Work`.
        bytes_saved: Bytes that are no longer read and written, if operators run one by one.
        peak_bytes_before: Largest number of bytes, allocated by the step, alive at once.
        peak_bytes_after: The same, after the pass.
        did: What the pass did, in sentences; see `StepGraph.say`.
        reasons: The reasons in these sentences as values, for example why an update did not move.
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
    peak_bytes_before: int = 0
    peak_bytes_after: int = 0
    did: tuple[str, ...] = ()
    reasons: tuple[Enum, ...] = field(default=(), metadata=NOT_IN_DICT)

    @property
    def acted(self) -> bool:
        """Whether the number of nodes or operators changed, or the pass recorded a sentence."""
        before = (self.nodes_before, self.operators_before)
        return bool(self.did) or before != (self.nodes_after, self.operators_after)


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

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
            step: A step graph that verifies. May be changed.

        Returns:
            The rewritten step and one record for each pass.

        Raises:
            VerifyError: The result of a pass is malformed or not equivalent to its input.
        """
        with _no_garbage_collection():
            return self._run(step)

    def _run(self, step: StepGraph) -> tuple[StepGraph, tuple[PassRecord, ...]]:
        records = []
        before = _Facts.at(step, step.version())
        for applied in self.passes:
            start = time.perf_counter()
            step = applied(step)
            ms = (time.perf_counter() - start) * 1e3
            after, version = before, step.version()
            if version != before.version:
                after = _verified(step, version, applied, before.meaning)
            records.append(_record(applied, ms, before, after, step.said()))
            before = after
        return step, tuple(records)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Scope without garbage collections: passes make many objects and hardly any garbage.

    Each collection would visit all of them; on large graphs that is a third of the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True)
class _Facts:
    """The properties of a step between two passes that a record compares."""

    version: tuple[Any, ...]
    meaning: Meaning
    work: Work
    nodes: int
    operators: int

    @classmethod
    def at(cls, step: StepGraph, version: tuple[Any, ...]) -> _Facts:
        nodes, operators = _size(step)
        return cls(version, meaning(step), work(step), nodes, operators)


def _record(
    applied: Pass, ms: float, before: _Facts, after: _Facts, said: Sequence[Remark]
) -> PassRecord:
    return PassRecord(
        name=repr(applied),
        ms=ms,
        nodes_before=before.nodes,
        nodes_after=after.nodes,
        operators_before=before.operators,
        operators_after=after.operators,
        flops_saved=before.work.flops - after.work.flops,
        lost=_lost(before.meaning, after.meaning),
        launches_saved=before.work.launches - after.work.launches,
        bytes_saved=before.work.bytes - after.work.bytes,
        peak_bytes_before=before.work.peak_bytes,
        peak_bytes_after=after.work.peak_bytes,
        did=tuple(remark.sentence for remark in said),
        reasons=tuple(reason for remark in said for reason in remark.reasons),
    )


def _lost(before: Meaning, after: Meaning) -> tuple[str, ...]:
    """Return the resources that fewer effects write than before, in order."""
    gone = before.effects - after.effects
    return tuple(dict.fromkeys(resource for _, resources in gone for resource in resources))


def _verified(
    step: StepGraph, version: tuple[Any, ...], applied: Pass, expected: Meaning
) -> _Facts:
    try:
        step.verify()
        found = _Facts.at(step, version)
        if applied.keeps_effects:
            compare(found.meaning, expected)
    except VerifyError as error:
        raise VerifyError(
            f"{applied!r} left a step graph that does not verify: {error.what}",
            at=error.at,
            found=error.found,
            why=error.why,
            hint="take the pass out of the pipeline, and report it",
        ) from error
    return found


def _size(step: StepGraph) -> tuple[int, int]:
    """Return the numbers of typed nodes and of operators."""
    owners = (node.meta.get("stepgraph.node") for node in step.flat().graph.nodes)
    owned = [owner for owner in owners if owner is not None]
    return len(set(owned)), len(owned)

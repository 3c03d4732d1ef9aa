"""A call of the user's Python that a rehearsed program is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepgraph.capture import ListSubject, Refusal, Subjects, Terms, on_terms
from stepgraph.compiler.variants.rewrite import Rewritten
from stepgraph.lowering import emit, first_update
from stepgraph.runtime import (
    PartialRehearsal,
    Program,
    Rehearsal,
    WholeRehearsal,
    autocast_devices,
    results_of,
    watching,
)

UPDATE_METHODS = {
    "step": "step",
    "step_part": "step",
    "clipped_step": "step",
    "lr_step": "step",
    "unscale": "unscale_",
    "scaled_step": "step",
    "scale_update": "update",
    "ema": "update_parameters",
}
"""The method of a subject that is entered where each marker stands."""


class RehearsedCall:
    """Runs a program once without a trace, then the user's Python, and compares the two.

    Args:
        rewritten: The step, with the inputs of the call. Everything the program writes is put
            back before the user's Python runs.
        terms: The terms of the call.
        subjects: All subjects of the step.

    Attributes:
        difference: The first thing that differed, or None. Known after the call.
        refusal: Why the program must not be used although nothing differed, or None.
    """

    def __init__(self, rewritten: Rewritten, terms: Terms, subjects: Subjects) -> None:
        self._rewritten, self._terms, self._subjects = rewritten, terms, subjects
        self._retried = rewritten.lowered.try_again()
        self._rehearsed = _rehearse(rewritten)
        self.difference: str | None = None
        self.refusal: Refusal | None = None

    def __call__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run `function`, once, and return what it returns."""
        rehearsed, rehearsal = self._rehearsed, self._rehearsed.rehearsal
        optimizers = self._rewritten.captured.optimizers
        own = [s.value for s in optimizers if not s.steps_as_torch()]
        with (
            results_of(own) as returned,
            watching(rehearsed.owner, rehearsed.method, rehearsal.compare),
            on_terms(self._terms, self._subjects),
        ):
            result = function(*args, **kwargs)
        if rehearsed.owner is None:
            rehearsal.compare()
        rehearsal.compare_result(result)
        worse = (f"{r.name}: {r.refusal}" for r in self._retried if r.refusal is not None)
        self.difference = rehearsal.difference or next(worse, None)
        if returned:
            self.refusal = Refusal("an optimizer whose step() returns a value")
        return result


@dataclass(frozen=True)
class _Rehearsed:
    """A rehearsal and the place to compare at: entry of a method, or the end of the call."""

    rehearsal: Rehearsal
    owner: Any = None
    method: str | None = None


def _rehearse(rewritten: Rewritten) -> _Rehearsed:
    """Run a step once without a trace: whole, or on copies up to its first update."""
    captured, flat = rewritten.captured, rewritten.lowered.flat
    subjects, inputs, names = captured.subjects, captured.inputs, rewritten.input_names
    devices = autocast_devices()
    besides = captured.written | {f"{name}.grad" for name in rewritten.dropped}
    if all(subject.may_rehearse() for subject in subjects.values()):
        emitted = emit(flat, subjects, withhold=True)
        owners = {s.label: s.value for s in subjects.values() if not isinstance(s, ListSubject)}
        program = Program(emitted.function, autocast_devices=devices)
        lists = [s.value for s in subjects.values() if isinstance(s, ListSubject)]
        return _Rehearsed(WholeRehearsal(program, inputs, names, owners, besides, lists))
    emitted = emit(flat, subjects, withhold=True, until_update=True)
    program = Program(emitted.function, autocast_devices=devices)
    rehearsal = PartialRehearsal(program, inputs, names, besides)
    update: Any = first_update(flat.graph)
    if update is None:
        return _Rehearsed(rehearsal)
    arguments = [argument.name for argument in update.target._schema.arguments]
    owner = subjects[update.args[arguments.index("subject")]].value
    marker = update.target._schema.name.partition("::")[2]
    return _Rehearsed(rehearsal, owner, UPDATE_METHODS.get(marker))

"""A value appended to a list of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stepgraph.effects.access import shared
from stepgraph.effects.effect import Effect, Emission, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::log", mutates_args=())
def _log(value: Tensor, subject: int, as_number: bool) -> None:
    """Append `value`, or the number in it, to a list of the user's."""


without_result(_log)


def append(value: Tensor, subject: Any, as_number: bool) -> None:
    """Append a tensor, or the number in it, to `subject`. Updated: the list."""
    subject.append(value.item() if as_number else value)


def _say(words: Words) -> str:
    return f"{words.value('value')} to {words.label}"


def _append(emission: Emission) -> Iterator[str]:
    values = emission.object_name("subject")
    logged = emission.number("value")
    if logged is None:
        logged = emission.argument("value") + (".item()" if emission.raw("as_number") else "")
    yield f"{values}.append({logged})"


LOG = register(
    Effect(
        op=torch.ops.stepgraph.log.default,
        kind=Kind.LOG,
        says=_say,
        reads=(shared("log"),),
        writes=(shared("log"),),
        values_read=("value",),
        region="waits",
        cuda_graph="tail",
        may_raise=False,
        moves={},
        launches=False,
        run=append,
        emit=_append,
        rehearsal="withhold",
        short_window="skipped",
        hands_out=("value",),
        detaches=True,
    )
)
"""An append to a list of the user's, in program order."""

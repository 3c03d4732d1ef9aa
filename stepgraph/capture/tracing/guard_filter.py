"""Keeps Dynamo's guards that are valid at replay, when the stand-ins are removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from stepgraph.capture.objects import ListStandIn, TrackedObjects
from stepgraph.capture.objects.table import TABLE_SOURCE
from stepgraph.capture.tracing.functions import REPLACED_FUNCTIONS
from stepgraph.torch_private import is_within, module_prefix

_REPLACEMENTS = [replacement for _, _, replacement in REPLACED_FUNCTIONS]

_OWN_MODULES = module_prefix("stepgraph")
"""Prefix of Dynamo's names for modules of this library, whose functions a trace inlines."""

CONSTANT_NAMES = re.compile(rf"{re.escape(TABLE_SOURCE)}(\.subject_\d+(\.\w+(\[\d+\])?)?)?")
"""Names in the table that this library alone assigns, once."""


def guard_filter(
    objects: TrackedObjects,
) -> Callable[[Sequence[tuple[str, str, Any]]], list[bool]]:
    """Return a filter that drops guards on stand-ins and on the code of this library.

    It takes the name, the type and the value of each guard, and returns for each whether to keep
    it.
    """
    replaced = objects.replaced

    def keep(entries: Sequence[tuple[str, str, Any]]) -> list[bool]:
        prefixes = {
            f"{name}.{attribute}"
            for name, _, value in entries
            for attribute in replaced.get(id(value), ())
        }
        prefixes |= {
            name
            for name, _, value in entries
            if isinstance(value, ListStandIn) or any(value is f for f in _REPLACEMENTS)
        }
        return [
            not any(is_within(name, prefix) for prefix in prefixes)
            and not (kind == "NOT_PRESENT_IN_GENERIC_DICT" and id(value) in replaced)
            and (not name.startswith(_OWN_MODULES) or is_within(name, TABLE_SOURCE))
            and (isinstance(value, Tensor) or not CONSTANT_NAMES.fullmatch(name))
            and kind != "AUTOGRAD_SAVED_TENSORS_HOOKS"  # never when a step is replayed
            for name, kind, value in entries
        ]

    return keep

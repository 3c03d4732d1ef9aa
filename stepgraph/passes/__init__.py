"""Passes: rewrites of a step graph, one file each.

Files, in reading order:

    base.py            `Pass`
    pipeline.py        `Pipeline`: runs passes, verifies and records each
    dead_code.py       drops unused gradient norms
    dead_gradients.py  drops gradients that are never read
    read_gradients.py  frees gradients after their last reader
    early_update.py    moves updates up to where their gradients are final
    memory_order.py    orders nodes for a lower peak of memory
    fuse_tail.py       fuses clipping into the update
    short_window.py    reduces a step to the update of a window that ends early
"""

from stepgraph.passes.base import Pass
from stepgraph.passes.dead_code import DropUnusedNorm
from stepgraph.passes.dead_gradients import DropDeadGradients, cleared_first, dropped_gradients
from stepgraph.passes.early_update import EARLY, EarlyUpdate, WaitFor
from stepgraph.passes.fuse_tail import FuseTail
from stepgraph.passes.memory_order import OrderForMemory
from stepgraph.passes.pipeline import NOT_IN_DICT, PassRecord, Pipeline
from stepgraph.passes.read_gradients import DropReadGradients
from stepgraph.passes.short_window import UpdateFromShortWindow

__all__ = [
    "DEFAULT",
    "EARLY",
    "NOT_IN_DICT",
    "WITHOUT_GRADIENTS",
    "DropDeadGradients",
    "DropReadGradients",
    "DropUnusedNorm",
    "EarlyUpdate",
    "FuseTail",
    "OrderForMemory",
    "Pass",
    "PassRecord",
    "Pipeline",
    "UpdateFromShortWindow",
    "WaitFor",
    "cleared_first",
    "dropped_gradients",
]

DEFAULT = Pipeline((DropUnusedNorm(), EarlyUpdate(), OrderForMemory()))
"""The passes of every captured step."""

WITHOUT_GRADIENTS = Pipeline(
    (DropUnusedNorm(), DropDeadGradients(), DropReadGradients(), EarlyUpdate(), OrderForMemory())
)
"""The passes with `keep_grads=False`."""

"""The user's objects that a step acts on: their stand-ins, and checks that they are unchanged.

Files, in reading order:

    base.py             `TrackedObject`, which every other class here extends
    table.py            access of traced code to the tracked objects
    optimizer.py        an optimizer
    zero_grad_order.py  the order of updates and `zero_grad()` in a call
    scheduler.py        a learning rate schedule
    scaler.py           a `GradScaler`
    averaged_model.py   an `AveragedModel`
    growing_list.py     a list that the step appends to
    list_location.py    the variable, item or attribute that holds such a list
    registry.py         the tracked objects of a step, and the class for each type
    discover.py         finds objects to track before the step is traced
"""

from stepgraph.capture.objects.base import TraceContext, TrackedObject
from stepgraph.capture.objects.growing_list import ListStandIn, TrackedList, is_growing
from stepgraph.capture.objects.optimizer import FORBIDDEN_LOOP, TrackedOptimizer
from stepgraph.capture.objects.registry import TrackedObjects, track, tracked_class
from stepgraph.capture.objects.scaler import TrackedScaler
from stepgraph.capture.objects.table import entry_name, number_of, tracked

__all__ = [
    "FORBIDDEN_LOOP",
    "ListStandIn",
    "TraceContext",
    "TrackedList",
    "TrackedObject",
    "TrackedObjects",
    "TrackedOptimizer",
    "TrackedScaler",
    "entry_name",
    "is_growing",
    "number_of",
    "track",
    "tracked",
    "tracked_class",
]

"""Capture: from a call of the user's step to one flat ATen graph with guards.

Files, in reading order:

    capture.py     the capture of one call, in stages
    objects/       the user's objects that a step acts on
    options/       the options of a call, for a trace and for an eager call
    tracing/       functions that a trace inlines, and the flattening of its graph
    checks/        conditions that forbid a capture or a replay
    refusal.py     the reasons why a step is not captured
    call_scope.py  arguments and closure variables of a call by name
    eager_call.py  an eager call with options
    self_test.py   a check that this version of torch can be captured
"""

from stepgraph.capture.call_scope import scalars_in, scope_reader, varied_number
from stepgraph.capture.capture import Captured, capture
from stepgraph.capture.checks.preconditions import ReplayPreconditions, entry_reason
from stepgraph.capture.eager_call import with_call_options
from stepgraph.capture.objects import (
    TraceContext,
    TrackedList,
    TrackedObject,
    TrackedObjects,
    TrackedOptimizer,
    entry_name,
    number_of,
    track,
    tracked,
)
from stepgraph.capture.options.call_options import CallOptions
from stepgraph.capture.options.forbidden import Forbidden
from stepgraph.capture.options.microbatches import Microbatches, check_batch
from stepgraph.capture.options.split_loop import looped
from stepgraph.capture.refusal import Refusal, refusal_of
from stepgraph.capture.self_test import self_test

__all__ = [
    "CallOptions",
    "Captured",
    "Forbidden",
    "Microbatches",
    "Refusal",
    "ReplayPreconditions",
    "TraceContext",
    "TrackedList",
    "TrackedObject",
    "TrackedObjects",
    "TrackedOptimizer",
    "capture",
    "check_batch",
    "entry_name",
    "entry_reason",
    "looped",
    "number_of",
    "refusal_of",
    "scalars_in",
    "scope_reader",
    "self_test",
    "track",
    "tracked",
    "varied_number",
    "with_call_options",
]

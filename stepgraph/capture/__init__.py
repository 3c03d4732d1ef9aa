"""Capture: from a call of the user's step to one flat ATen graph with guards."""

from stepgraph.capture.call_scope import scalars_in, scope_reader, varied_number
from stepgraph.capture.capture import Captured, capture
from stepgraph.capture.checks.preconditions import Moment, entry_reason
from stepgraph.capture.eager_call import on_terms
from stepgraph.capture.objects.registry import ListSubject, OptimizerSubject, Subject, Subjects
from stepgraph.capture.objects.stand_ins import Opaque
from stepgraph.capture.options.call_options import Terms
from stepgraph.capture.options.microbatches import Microbatches, check_batch
from stepgraph.capture.options.split_loop import looped
from stepgraph.capture.refusal import Refusal, refusal_of
from stepgraph.capture.self_test import self_test

__all__ = [
    "Captured",
    "ListSubject",
    "Microbatches",
    "Moment",
    "Opaque",
    "OptimizerSubject",
    "Refusal",
    "Subject",
    "Subjects",
    "Terms",
    "capture",
    "check_batch",
    "entry_reason",
    "looped",
    "on_terms",
    "refusal_of",
    "scalars_in",
    "scope_reader",
    "self_test",
    "varied_number",
]

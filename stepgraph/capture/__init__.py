"""Capture: from a call of the user's step to one flat ATen graph with guards."""

from stepgraph.capture.capture import Captured, capture
from stepgraph.capture.eager import on_terms
from stepgraph.capture.loop import looped
from stepgraph.capture.microbatches import Microbatches, check_batch
from stepgraph.capture.preflight import Moment, entry_reason
from stepgraph.capture.refusal import Refusal, refusal_of
from stepgraph.capture.scope import scalars_in, scope_reader, varied_number
from stepgraph.capture.self_test import self_test
from stepgraph.capture.subjects import ListSubject, OptimizerSubject, Subject, Subjects
from stepgraph.capture.terms import Terms
from stepgraph.capture.traced import Opaque

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

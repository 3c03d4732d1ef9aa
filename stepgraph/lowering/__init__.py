"""Lowering: from a step graph to a program."""

from stepgraph.lowering.capturable import why_not_capturable
from stepgraph.lowering.cuda_graph import graphed
from stepgraph.lowering.emit import Emitted, emit, first_update
from stepgraph.lowering.fused import FusedUpdate
from stepgraph.lowering.inductor import compile_region
from stepgraph.lowering.lower import Lowered, lower
from stepgraph.lowering.masters import Masters
from stepgraph.lowering.region import Region, Unsupported
from stepgraph.lowering.sections import Section, launched, operator_sections, sections, with_marks
from stepgraph.lowering.updates import misfit

__all__ = [
    "Emitted",
    "FusedUpdate",
    "Lowered",
    "Masters",
    "Region",
    "Section",
    "Unsupported",
    "compile_region",
    "emit",
    "first_update",
    "graphed",
    "launched",
    "lower",
    "misfit",
    "operator_sections",
    "sections",
    "why_not_capturable",
    "with_marks",
]

"""Lowering: from a step graph to a program.

Files, in reading order:

    lower.py        replaces runs of operators by compiled regions
    regions/        which operators a compiler gets, and what becomes of them
    updates/        `optimizer.step()` in fused kernels
    emit.py         the Python of a program
    cuda/           a program as a CUDA graph
    sections.py     where one typed node of a program ends and the next begins
    closeness.py    when compiled results are close enough to eager ones
    cpp_library.py  C++ of this package, compiled once
"""

from stepgraph.lowering.cuda.legality import why_not_capturable
from stepgraph.lowering.cuda.record import graphed
from stepgraph.lowering.emit import Emitted, emit, first_update
from stepgraph.lowering.lower import Lowered, lower
from stepgraph.lowering.regions.compiled_run import CompiledRun, Unsupported
from stepgraph.lowering.regions.inductor import compile_region
from stepgraph.lowering.sections import Section, launched, operator_sections, sections, with_marks
from stepgraph.lowering.updates.choose import misfit
from stepgraph.lowering.updates.cpu import FusedUpdate
from stepgraph.lowering.updates.master_weights import Masters
from stepgraph.lowering.updates.not_fused import NotFused, Obstacle

__all__ = [
    "CompiledRun",
    "Emitted",
    "FusedUpdate",
    "Lowered",
    "Masters",
    "NotFused",
    "Obstacle",
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

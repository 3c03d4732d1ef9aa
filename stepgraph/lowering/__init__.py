"""Lowering: from a step graph to a program.

Files, in reading order:

    lower.py        replaces runs of operators by compiled regions
    regions/        selection and compilation of runs of operators
    updates/        `optimizer.step()` in fused kernels
    emit.py         the Python source of a program
    cuda/           a program as a CUDA graph
    sections.py     the nodes of a program by typed node
    closeness.py    comparison of compiled results with eager ones
    cpp_library.py  compilation of the C++ sources of this package
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

"""The compiler: capture, lower, replay; a variant for every path through a step."""

from stepgraph.capture import Microbatches
from stepgraph.compiler.compile import compile
from stepgraph.compiler.compiled_step import CompiledStep
from stepgraph.compiler.explain import Explanation

__all__ = ["CompiledStep", "Explanation", "Microbatches", "compile"]

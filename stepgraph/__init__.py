"""stepgraph: compile a whole PyTorch training step."""

from stepgraph import errors
from stepgraph.compiler import CompiledStep, Explanation, compile
from stepgraph.ir import StepGraph

__all__ = ["CompiledStep", "Explanation", "StepGraph", "__version__", "compile", "errors"]

__version__ = "0.1.0.dev0"

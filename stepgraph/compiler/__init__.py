"""The compiler: captures, lowers and replays a step, with a variant for each path through it.

Files, in reading order:

    compile.py        `stepgraph.compile`
    options.py        its keyword arguments, checked
    compiled_step.py  `CompiledStep`: replays a call, captures it, or runs it eagerly
    variants/         a variant: its capture, passes, rehearsal and program
    window.py         the calls of a window that make one update
    flush.py          the update of a window that ends early
    fallbacks.py      the reasons of eager calls, counted and reported
    closures.py       optimizers that call a closure in a loop of their own
    explain/          the result of `explain()`
    probe.py          repeats one call for a profile
    extensions.py     methods implemented by packages above: profiles, pages, tables
"""

from stepgraph.capture import Microbatches
from stepgraph.compiler.compile import compile
from stepgraph.compiler.compiled_step import CompiledStep
from stepgraph.compiler.explain import Explanation

__all__ = ["CompiledStep", "Explanation", "Microbatches", "compile"]

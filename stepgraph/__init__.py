"""stepgraph: compile a whole PyTorch training step.

Packages, in the order of a step's way, then those around it:

    compiler/           `compile()` and `CompiledStep`: replay, capture or run eagerly
    capture/            from a call of the user's step to one flat graph with guards
    effects/            the effects of a step, one value each, and their registry
    ir/                 the step graph: regions, resources, dependencies, verification
    passes/             rewritings of a step graph, one file each, and their pipeline
    lowering/           from a step graph to a program: regions, updates, CUDA graphs
    runtime/            programs: rehearsal and replay
    analysis/           operations, bytes and live memory of a graph
    profiling/          measurements of a compiled step
    report/             explanations and profiles in a terminal and as a page
    train/              `Module`, `Trainer` and callbacks
    cli/                the command line
    errors.py           the exceptions
    config.py           the environment variables
    optimizer_facts.py  what is known of each optimizer of torch
    torch_private/      every use of private parts of torch
"""

from stepgraph import errors, profiling, report
from stepgraph.compiler import CompiledStep, Explanation, Microbatches, compile, extensions
from stepgraph.ir import StepGraph
from stepgraph.profiling import Profile
from stepgraph.train import (
    EMA,
    Callback,
    CSVLogger,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    Module,
    OptimizerWrapper,
    ProgressBar,
    TensorBoardLogger,
    Trainer,
)

__all__ = [
    "EMA",
    "CSVLogger",
    "Callback",
    "CompiledStep",
    "EarlyStopping",
    "Explanation",
    "GradientAccumulationScheduler",
    "LearningRateMonitor",
    "Microbatches",
    "ModelCheckpoint",
    "Module",
    "OptimizerWrapper",
    "Profile",
    "ProgressBar",
    "StepGraph",
    "TensorBoardLogger",
    "Trainer",
    "__version__",
    "compile",
    "errors",
]

__version__ = "0.1.0.dev0"

extensions.register(profile=profiling.profile, to_html=report.to_html, to_rich=report.to_rich)

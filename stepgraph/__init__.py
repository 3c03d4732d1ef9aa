"""stepgraph: compile a whole PyTorch training step."""

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

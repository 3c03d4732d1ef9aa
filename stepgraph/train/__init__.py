"""Modules and trainers: the optimization system around a compiled step."""

from stepgraph.train.callbacks import (
    EMA,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
)
from stepgraph.train.hooks import Callback
from stepgraph.train.loggers import CSVLogger, Logger, TensorBoardLogger
from stepgraph.train.module import Module
from stepgraph.train.optimizers import OptimizerWrapper
from stepgraph.train.trainer import Trainer

__all__ = [
    "EMA",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LearningRateMonitor",
    "Logger",
    "ModelCheckpoint",
    "Module",
    "OptimizerWrapper",
    "ProgressBar",
    "TensorBoardLogger",
    "Trainer",
]

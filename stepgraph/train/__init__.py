"""Modules and trainers: the optimization system around a compiled step.

Files, in reading order:

    module.py      `Module`: a model that says how it is trained
    trainer.py     `Trainer`: `fit`, `validate`, `save_checkpoint`
    training.py    the state of a training, which all parts share
    options.py     the trainer's options, checked
    hooks.py       `Callback`, the hooks of a module, and their order
    signatures.py  which arguments a user's hook takes
    loop/          epochs, batches, validation, processes
    optimization/  what happens to optimizers, schedules and gradients
    checkpoints/   files, and what is in them
    logging/       `self.log` and the loggers
    callbacks/     the callbacks that come with the trainer
"""

from stepgraph.train.callbacks import (
    EMA,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
)
from stepgraph.train.hooks import Callback
from stepgraph.train.logging.loggers import CSVLogger, Logger, TensorBoardLogger
from stepgraph.train.module import Module
from stepgraph.train.optimization.optimizers import OptimizerWrapper
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

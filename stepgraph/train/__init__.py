"""Modules and trainers: loops, optimization, checkpoints and logging around a compiled step.

Files, in reading order:

    module.py      `Module`: a model with its training step and optimizers
    trainer.py     `Trainer`: `fit`, `validate`, `save_checkpoint`
    training.py    `Training`: the shared state of a training
    options.py     the trainer's options, checked
    hooks.py       `Callback`, the hooks of a module, and their order
    signatures.py  the arguments of a user's hook, from its signature
    loop/          epochs, batches, validation, processes
    optimization/  optimizers, schedules and gradients
    checkpoints/   checkpoint files and their contents
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

"""Callbacks that come with the trainer.

Files, in reading order:

    standard.py          the default callbacks of a trainer
    model_checkpoint.py  saves the best models and the latest
    early_stopping.py    ends a training that no longer improves
    ema.py               an exponential moving average of the weights
    learning_rate.py     writes learning rates to the loggers
    accumulation.py      accumulation that changes between epochs
    progress_bar.py      a progress bar in a terminal
"""

from stepgraph.train.callbacks.accumulation import GradientAccumulationScheduler
from stepgraph.train.callbacks.early_stopping import EarlyStopping
from stepgraph.train.callbacks.ema import EMA
from stepgraph.train.callbacks.learning_rate import LearningRateMonitor
from stepgraph.train.callbacks.model_checkpoint import ModelCheckpoint
from stepgraph.train.callbacks.progress_bar import ProgressBar

__all__ = [
    "EMA",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ProgressBar",
]

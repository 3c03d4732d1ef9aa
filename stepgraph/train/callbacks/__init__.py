"""Callbacks that come with the trainer."""

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

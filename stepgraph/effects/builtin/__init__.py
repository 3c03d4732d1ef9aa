"""The effects of PyTorch's training loop, one file for each group that belongs together.

Files, in reading order:

    gradients.py       a first gradient, one that is added, the store in a `.grad`
    zero_grad.py       `optimizer.zero_grad()`
    toggle.py          `requires_grad_()`
    step.py            `optimizer.step()`, alone and with clipping inside
    step_part.py       `optimizer.step()` for some of the parameters
    loss_scale.py      `scaler.unscale_()`, `scaler.step()`, `scaler.update()`
    schedule.py        `scheduler.step()`
    hyper.py           a learning rate that is read or set in a step
    averaged_model.py  `averaged_model.update_parameters()`
    log.py             an append to a list
    check.py           the argument checks of distributions
"""

from stepgraph.effects.builtin.averaged_model import EMA, UpdateAverage
from stepgraph.effects.builtin.check import CHECK
from stepgraph.effects.builtin.gradients import ADD_GRAD, FIRST_GRAD, SET_GRAD
from stepgraph.effects.builtin.hyper import HYPER, SET_HYPER
from stepgraph.effects.builtin.log import LOG
from stepgraph.effects.builtin.loss_scale import (
    SCALE_UPDATE,
    SCALED_STEP,
    UNSCALE,
    step_with_scaler,
)
from stepgraph.effects.builtin.schedule import LR_STEP
from stepgraph.effects.builtin.step import CLIPPED_STEP, STEP, run_step
from stepgraph.effects.builtin.step_part import STEP_PART, PartOfStep
from stepgraph.effects.builtin.toggle import TOGGLE
from stepgraph.effects.builtin.zero_grad import ZERO_GRAD

__all__ = [
    "ADD_GRAD",
    "CHECK",
    "CLIPPED_STEP",
    "EMA",
    "FIRST_GRAD",
    "HYPER",
    "LOG",
    "LR_STEP",
    "SCALED_STEP",
    "SCALE_UPDATE",
    "SET_GRAD",
    "SET_HYPER",
    "STEP",
    "STEP_PART",
    "TOGGLE",
    "UNSCALE",
    "ZERO_GRAD",
    "PartOfStep",
    "UpdateAverage",
    "run_step",
    "step_with_scaler",
]

"""Optimizers, schedules and gradients of a training.

Files, in reading order:

    configuration.py   the accepted results of `configure_optimizers`
    compose.py         composition of the steps of automatic optimization
    automatic_step.py  one such step
    optimizers.py      the optimizer wrappers returned by `self.optimizers()`
    updates.py         precision, hooks and counts around `optimizer.step()`
    schedules.py       advance of learning rate schedules
    clipping.py        gradient clipping
    precision.py       casts and the loss scale
    toggles.py         `requires_grad` of the parameters of one optimizer
    gradient_sync.py   gradients and buffers between processes
"""

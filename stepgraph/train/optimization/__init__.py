"""What happens to optimizers, schedules and gradients.

Files, in reading order:

    configuration.py   what `configure_optimizers` may return
    compose.py         the steps that automatic optimization implies
    automatic_step.py  one such step
    optimizers.py      what `self.optimizers()` returns
    updates.py         precision, hooks and counts around `optimizer.step()`
    schedules.py       when schedules advance
    clipping.py        gradient clipping
    precision.py       casts and the loss scale
    toggles.py         whose parameters require gradients
    gradient_sync.py   gradients and buffers between processes
"""

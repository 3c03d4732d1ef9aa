"""Accumulation that changes between epochs."""

from __future__ import annotations

from stepgraph.train.hooks import Callback
from stepgraph.train.options import checked_accumulation


class GradientAccumulationScheduler(Callback):
    """Changes the number of accumulated batches at given epochs.

    The same as `Trainer(accumulate_grad_batches={...})`.

    Args:
        scheduling: Number of batches, by the epoch from which it applies, counted from 0. It is 1
            before the first of these epochs.

    Raises:
        ConfigurationError: `scheduling` is empty, or an epoch or number is invalid.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        self.scheduling = checked_accumulation(scheduling, "scheduling")

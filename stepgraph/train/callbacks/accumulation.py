"""Accumulation that changes between epochs."""

from __future__ import annotations

from stepgraph.train.hooks import Callback
from stepgraph.train.options import checked_accumulation


class GradientAccumulationScheduler(Callback):
    """Accumulates another number of batches from certain epochs on.

    The same as `Trainer(accumulate_grad_batches={...})`.

    Args:
        scheduling: Number of batches by the epoch, from 0, where it begins; 1 before the first.

    Raises:
        ConfigurationError: It is empty, or has something else than such numbers in it.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        self.scheduling = checked_accumulation(scheduling, "scheduling")

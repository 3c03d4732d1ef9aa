"""Where a training is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

EPOCH_START = "epoch start"
BATCH = "batch"
BATCH_DONE = "batch done"
VALIDATED = "validated"
EPOCH_DONE = "epoch done"


@dataclass
class Progress:
    """Counters of a training, and what comes next; all of it is in a checkpoint.

    Attributes:
        epoch: Number of the epoch, from 0.
        batch: How many batches of the epoch are done.
        batches: How many batches of all epochs are done.
        global_step: In how many batches at least one optimizer stepped.
        optimizer_steps: How often each optimizer stepped.
        phase: What has just happened in the epoch.
        accumulate: Length of a full accumulation window in this epoch.
        window: Length of the window that the next batch belongs to, while it is open; else 0.
        in_window: How many batches of that window are done.
        pending: For each optimizer, whether it has gradients in the open window.
        stepped: The optimizers that stepped in the latest batch.
    """

    epoch: int = 0
    batch: int = 0
    batches: int = 0
    global_step: int = 0
    optimizer_steps: list[int] = field(default_factory=list)
    phase: str = EPOCH_START
    accumulate: int = 1
    window: int = 0
    in_window: int = 0
    pending: list[bool] = field(default_factory=list)
    stepped: list[int] = field(default_factory=list)

    def start_epoch(self, accumulate: int) -> None:
        """Be before the first batch of an epoch."""
        self.batch, self.accumulate, self.phase = 0, accumulate, BATCH
        self.close_window()

    def open_window(self, remaining: int) -> None:
        """Be before the first batch of a window, with `remaining` batches left in the epoch."""
        self.window, self.in_window = min(self.accumulate, remaining), 0
        self.pending = [False] * len(self.optimizer_steps)

    def close_window(self) -> None:
        """Be between two windows."""
        self.window = self.in_window = 0
        self.pending = [False] * len(self.optimizer_steps)

    @property
    def window_ends(self) -> bool:
        """Whether the batch at hand is the last of its window."""
        return self.in_window + 1 >= self.window

    def count(self, stepped: list[int]) -> None:
        """Count the updates of a batch."""
        for index in stepped:
            self.optimizer_steps[index] += 1
        if stepped and not self.stepped:
            self.global_step += 1
        self.stepped = self.stepped + stepped

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, for a checkpoint."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; a finished epoch becomes the start of the next."""
        for name, value in state.items():
            setattr(self, name, value)
        if self.phase == EPOCH_DONE:
            self.epoch, self.batch, self.phase = self.epoch + 1, 0, EPOCH_START

"""The progress of a training: counters and position."""

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
    """Counters of a training and its position; all of it is in a checkpoint.

    Attributes:
        epoch: Number of the epoch, from 0.
        batch: Number of batches done in the epoch.
        batches: Number of batches done in all epochs.
        global_step: Number of batches in which at least one optimizer stepped.
        optimizer_steps: Number of steps of each optimizer.
        phase: The latest completed phase of the epoch.
        accumulate: Length of a full accumulation window in this epoch.
        window: Length of the window of the next batch, while it is open; else 0.
        in_window: Number of batches done in that window.
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
        """Go to the start of an epoch."""
        self.batch, self.accumulate, self.phase = 0, accumulate, BATCH
        self.close_window()

    def open_window(self, remaining: int) -> None:
        """Go to the start of a window, with `remaining` batches left in the epoch."""
        self.window, self.in_window = min(self.accumulate, remaining), 0
        self.pending = [False] * len(self.optimizer_steps)

    def close_window(self) -> None:
        """Go to the end of the window."""
        self.window = self.in_window = 0
        self.pending = [False] * len(self.optimizer_steps)

    @property
    def window_ends(self) -> bool:
        """Whether the present batch is the last of its window."""
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

"""Progress of a training: a bar in a terminal, else a few plain lines."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINES = 4


class TrainingProgress:
    """Shows the progress of a training after each epoch.

    Nothing runs between two epochs, not even a refresh thread, so step times are not disturbed.

    Args:
        console: Console to print to.
        epochs: Number of epochs.
    """

    def __init__(self, console: Console, epochs: int) -> None:
        self._console = console
        self._epochs = epochs
        self._done = 0
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=epochs, losses="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def epoch_done(self, losses: dict[str, float]) -> None:
        """Show that an epoch has ended with these losses."""
        self._done += 1
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        if self._console.is_terminal:
            self._bar.update(self._task, losses=shown, advance=1, refresh=True)
        elif self._starts_new_line():
            self._console.print(f"  {self._done}/{self._epochs} epochs  {shown}")

    def _starts_new_line(self) -> bool:
        share = self._done * _LINES // self._epochs
        return share != (self._done - 1) * _LINES // self._epochs

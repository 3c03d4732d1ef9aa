"""Loggers: they write metrics to files."""

from __future__ import annotations

import csv
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from stepgraph.errors import ConfigurationError


class Logger:
    """Receives metrics as Python numbers."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics that belong to an update."""
        raise NotImplementedError

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Write the hyper-parameters of a module."""

    def save(self) -> None:
        """Write everything to disk."""

    def finalize(self) -> None:
        """Called when a training is over."""
        self.save()


class CSVLogger(Logger):
    """Writes `metrics.csv`, a row for every call, and `hparams.json`.

    A metric that is first logged later adds a column; earlier rows are kept.

    Args:
        save_dir: Folder for all runs.
        name: Folder for the runs of one experiment.
        version: Folder of this run; the next free number by default.
    """

    def __init__(
        self, save_dir: str | Path, name: str = "logs", version: int | str | None = None
    ) -> None:
        self.root = Path(save_dir) / name
        self._version = version
        self._columns: list[str] = ["step"]
        self._rows: list[dict[str, float]] = []
        self._written = 0

    @property
    def version(self) -> int | str:
        """Number or name of this run."""
        if self._version is None:
            taken = [
                int(folder.name.removeprefix("version_"))
                for folder in self.root.glob("version_*")
                if folder.name.removeprefix("version_").isdigit()
            ]
            self._version = max(taken, default=-1) + 1
        return self._version

    @property
    def log_dir(self) -> Path:
        """Folder of this run."""
        version = self.version
        return self.root / (f"version_{version}" if isinstance(version, int) else version)

    @property
    def path(self) -> Path:
        """The file with the metrics."""
        return self.log_dir / "metrics.csv"

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._rows.append({"step": step, **metrics})
        new = [name for name in metrics if name not in self._columns]
        if new:
            self._columns += new
            self._written = 0  # the header changes: write the whole file again

    @override
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(params), indent=2, default=str)
        (self.log_dir / "hparams.json").write_text(text + "\n")

    @override
    def save(self) -> None:
        if self._written == len(self._rows):
            return
        self.log_dir.mkdir(parents=True, exist_ok=True)
        if self._written:
            with self.path.open("a", newline="") as file:
                self._write(csv.DictWriter(file, self._columns), self._rows[self._written :])
        else:
            partial = self.path.with_suffix(".partial")
            with partial.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                self._write(writer, self._rows)
            os.replace(partial, self.path)
        self._written = len(self._rows)

    def _write(self, writer: Any, rows: list[dict[str, float]]) -> None:
        writer.writerows(rows)


class TensorBoardLogger(Logger):
    """Writes event files for TensorBoard.

    Args:
        save_dir: Folder for all runs.
        name: Folder for the runs of one experiment.
        version: Folder of this run.

    Raises:
        ConfigurationError: The package `tensorboard` is not installed.
    """

    def __init__(
        self, save_dir: str | Path, name: str = "logs", version: int | str | None = None
    ) -> None:
        self._folder = CSVLogger(save_dir, name, version)
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ConfigurationError(
                "TensorBoardLogger needs the package tensorboard",
                found=str(error),
                hint="install tensorboard, or use CSVLogger",
            ) from error
        self._writer = module.SummaryWriter(str(self._folder.log_dir))

    @property
    def log_dir(self) -> Path:
        """Folder of this run."""
        return self._folder.log_dir

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    @override
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self._writer.add_text("hparams", json.dumps(dict(params), indent=2, default=str))

    @override
    def save(self) -> None:
        self._writer.flush()

    @override
    def finalize(self) -> None:
        self._writer.close()


def loggers_of(given: Any, root: Path) -> list[Logger]:
    """Return the loggers for the argument `Trainer(logger=...)`.

    Raises:
        ConfigurationError: One of them is not a logger.
    """
    if given is None or given is False:
        return []
    if given is True:
        return [CSVLogger(root)]
    several = list(given) if isinstance(given, list | tuple) else [given]
    for one in several:
        if not callable(getattr(one, "log_metrics", None)):
            raise ConfigurationError(
                "Trainer: a logger has no log_metrics",
                at="the argument `logger`",
                found=type(one).__name__,
                hint="CSVLogger(folder), a Logger of your own, a list of them, True or False",
            )
    return several

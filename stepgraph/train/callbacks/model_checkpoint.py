"""Save the best models and the latest."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from typing_extensions import override

from stepgraph.errors import ConfigurationError
from stepgraph.train.checkpoints import files
from stepgraph.train.hooks import Callback
from stepgraph.train.module import Module
from stepgraph.train.optimization.schedules import missing_metric
from stepgraph.train.training import Training


class ModelCheckpoint(Callback):
    """Writes checkpoints from which the training can be resumed.

    It runs after all other callbacks. A file is removed only after the new one is complete.

    Args:
        dirpath: Folder; `checkpoints` in the trainer's `default_root_dir` by default.
        filename: Name of a file, with the fields `{epoch}`, `{step}` and `{name of a metric}`.
        monitor: Name of a logged metric. Without one, the latest checkpoints are the best.
        mode: `"min"` or `"max"`.
        save_top_k: Number of the best checkpoints to keep; -1 for all, 0 for none.
        save_last: Also keep `last.ckpt`, the newest.
        every_n_train_steps: Save at every n-th `global_step`.
        every_n_epochs: Save after every n-th epoch, or the validation at its end; 1 by default
            if `every_n_train_steps` is not given.

    Attributes:
        best_model_path: File of the best, or empty.
        best_model_score: Its metric, or None.
        last_model_path: File of the latest, or empty.
        best_k_models: Metric by file.
    """

    runs_last = True

    def __init__(
        self,
        dirpath: str | Path | None = None,
        *,
        filename: str | None = None,
        monitor: str | None = None,
        mode: str = "min",
        save_top_k: int = 1,
        save_last: bool = False,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(
                "ModelCheckpoint: unknown mode",
                at="the argument `mode`",
                found=repr(mode),
                hint='"min" or "max"',
            )
        if save_top_k < -1:
            raise ConfigurationError(
                "ModelCheckpoint: save_top_k is below -1",
                at="the argument `save_top_k`",
                found=repr(save_top_k),
                hint="-1 keeps all",
            )
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.filename = filename or "{epoch}-{step}"
        self.monitor, self.mode = monitor, mode
        self.save_top_k, self.save_last = save_top_k, save_last
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = every_n_epochs or (0 if every_n_train_steps else 1)
        self.best_model_path = ""
        self.best_model_score: float | None = None
        self.last_model_path = ""
        self.best_k_models: dict[str, float] = {}
        self._saved_at: tuple[int, ...] = ()
        self._folder = Path()

    @property
    @override
    def state_key(self) -> str:
        return f"ModelCheckpoint[{self.monitor}, {self.mode}, {self.dirpath}]"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "best_model_path": self.best_model_path,
            "best_model_score": self.best_model_score,
            "last_model_path": self.last_model_path,
            "best_k_models": dict(self.best_k_models),
            "saved_at": self._saved_at,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_model_path = state_dict["best_model_path"]
        self.best_model_score = state_dict["best_model_score"]
        self.last_model_path = state_dict["last_model_path"]
        self.best_k_models = dict(state_dict["best_k_models"])
        self._saved_at = tuple(state_dict["saved_at"])

    @override
    def setup(self, trainer: Training, module: Module, stage: str) -> None:
        self._folder = self.dirpath or trainer.default_root_dir / "checkpoints"

    @override
    def on_train_batch_end(
        self, trainer: Training, module: Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_train_steps
        if every and trainer.progress.stepped and trainer.global_step % every == 0:
            self._save(trainer)

    @override
    def on_validation_end(self, trainer: Training, module: Module) -> None:
        every = self.every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0:
            self._save(trainer)

    @override
    def on_train_epoch_end(self, trainer: Training, module: Module) -> None:
        every = self.every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0 and not trainer.validates:
            self._save(trainer)

    @override
    def on_fit_end(self, trainer: Training, module: Module) -> None:
        """Save the end of a training that stopped within an epoch."""
        if self.save_last and self._saved_at != _position(trainer):
            self._save_last(trainer)

    def _save(self, trainer: Training) -> None:
        score = self._score(trainer)
        self._saved_at = _position(trainer)
        path = str(self._folder / f"{self._name(trainer)}.ckpt")
        replaced = self._add_to_best(path, score)
        if self.save_last:
            self.last_model_path = str(self._folder / "last.ckpt")
        if path in self.best_k_models:
            trainer.save_checkpoint(path)
        if self.save_last:
            trainer.save_checkpoint(self.last_model_path)
        if trainer.rank == 0:
            for old in replaced:
                files.remove(old)

    def _save_last(self, trainer: Training) -> None:
        self._saved_at = _position(trainer)
        self.last_model_path = str(self._folder / "last.ckpt")
        trainer.save_checkpoint(self.last_model_path)

    def _score(self, trainer: Training) -> float:
        """Return the metric, negated for `"max"` so that smaller is better."""
        if self.monitor is None:
            return -float(trainer.progress.batches)
        metric = trainer.callback_metrics.get(self.monitor)
        if metric is None:
            raise missing_metric("ModelCheckpoint", self.monitor, list(trainer.callback_metrics))
        value = float(trainer.processes.agreed(metric))
        if math.isnan(value):
            return math.inf
        return value if self.mode == "min" else -value

    def _add_to_best(self, path: str, score: float) -> list[str]:
        """Add a checkpoint to the best; return the files that no longer belong to them."""
        if self.save_top_k == 0:
            return []
        candidates = {**self.best_k_models, path: score}
        ranked = sorted(candidates, key=lambda p: (candidates[p], -list(candidates).index(p)))
        kept = ranked if self.save_top_k < 0 else ranked[: self.save_top_k]
        self.best_k_models = {p: candidates[p] for p in kept}
        self.best_model_path = kept[0]
        if self.monitor is not None:
            best = candidates[kept[0]]
            self.best_model_score = best if self.mode == "min" else -best
        return [p for p in ranked if p not in self.best_k_models and p != path]

    def _name(self, trainer: Training) -> str:
        """Return the file's name with its fields filled, such as `epoch=3-step=120`."""
        values: dict[str, Any] = dict(trainer.callback_metrics)
        values.update(epoch=trainer.current_epoch, step=trainer.global_step)

        def labelled(field: re.Match[str]) -> str:
            name, form = field["name"], field["form"] or ""
            if name not in values:
                raise missing_metric("ModelCheckpoint.filename", name, list(values))
            value = values[name] if isinstance(values[name], int) else float(values[name])
            return f"{name}={format(value, form)}".replace("/", "_")

        return re.sub(r"\{(?P<name>[^{}:]+)(:(?P<form>[^{}]*))?\}", labelled, self.filename)


def _position(trainer: Training) -> tuple[int, ...]:
    """Return the counters of the training, to compare its position."""
    return trainer.progress.batches, trainer.progress.global_step

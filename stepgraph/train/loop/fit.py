"""The loop over epochs and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from stepgraph.errors import ConfigurationError
from stepgraph.train.logging.metrics import batch_size_of
from stepgraph.train.loop import progress as at
from stepgraph.train.loop.batches import Epoch, moved, restore_loading, set_epoch
from stepgraph.train.loop.checks import undecorated
from stepgraph.train.loop.validation import validate
from stepgraph.train.module import Module
from stepgraph.train.optimization.automatic_step import AutomaticStep, Micro, detached
from stepgraph.train.optimization.schedules import Schedules, due_after_step
from stepgraph.train.signatures import step_arguments
from stepgraph.train.training import Training


class FitLoop:
    """Trains a module until a limit of the trainer is reached.

    Every phase ends with a call of the callbacks that save, in a state from which the loop can be
    resumed; `Progress.phase` is the phase.

    Args:
        trainer: Provides the options and the progress, which is advanced.
        module: The user's module.
        loader: The training batches.
        validation: Loaders of validation batches.
        step: The module's training step, compiled or plain.
        automatic: One composed step for each optimizer; empty in manual optimization.
    """

    def __init__(
        self,
        trainer: Training,
        module: Module,
        loader: Any,
        validation: Sequence[Any],
        *,
        step: Callable[..., Any],
        automatic: Sequence[AutomaticStep],
    ) -> None:
        self.trainer, self.module, self.loader = trainer, module, loader
        self.validation = validation
        self.step, self.arguments = step, step_arguments(undecorated(module))
        self.automatic, self.is_automatic = automatic, bool(automatic)
        inside = [config for composed in automatic for config in composed.configs]
        outside = [config for config in trainer.lr_scheduler_configs if config not in inside]
        self.schedules = Schedules(trainer, module, outside if automatic else [])
        self.progress = trainer.progress
        self.updates = trainer.updates
        self.hooks = trainer.hooks
        self.precision = trainer.precision
        self.resumed: dict[str, Any] | None = None
        self.write_due = False
        self.reductions = 0
        self.epoch: Epoch

    def run(self) -> None:
        """Train."""
        trainer, progress = self.trainer, self.progress
        self._call("on_train_start")
        while not trainer.finished():
            self._run_epoch()
            if progress.phase != at.EPOCH_DONE:
                break  # stopped in the middle: the epoch may be resumed
            progress.epoch, progress.batch, progress.phase = progress.epoch + 1, 0, at.EPOCH_START
        self._call("on_train_end")

    def _run_epoch(self) -> None:
        self._begin_epoch()
        skipped = False
        progress, trainer = self.progress, self.trainer
        while not skipped:
            if progress.phase == at.BATCH:
                if not self.epoch.left:
                    self.epoch.finish()
                    break
                skipped = self._run_batch()
            if progress.phase == at.BATCH_DONE and self._validation_due():
                self._validate()
            self.schedules.after_validation()
            progress.stepped = []
            progress.phase = at.BATCH
            if trainer.stops_in_epoch() and self.epoch.left:
                return
        self._end_epoch()

    def _begin_epoch(self) -> None:
        trainer, progress = self.trainer, self.progress
        set_epoch(self.loader, progress.epoch)
        length = trainer.num_training_batches
        if progress.phase == at.EPOCH_START:
            self._restore_randomness()
            trainer.accumulate_grad_batches = trainer.options.accumulation_in(progress.epoch)
            self._call("on_train_epoch_start")
            progress.start_epoch(trainer.accumulate_grad_batches)
            self.epoch = trainer.epoch_batches = Epoch(
                self.loader, length, ahead=progress.accumulate
            )
            self.epoch.begin()
        else:
            trainer.accumulate_grad_batches = progress.accumulate
            self.epoch = trainer.epoch_batches = Epoch(
                self.loader, length, ahead=progress.accumulate
            )
            assert self.resumed is not None
            self.epoch.begin(self.resumed["epoch_start"], skip=progress.batch)
            trainer.is_last_batch = not self.epoch.left
            self._restore_randomness()
        for step in self.automatic:
            step.epoch = progress.epoch

    def _restore_randomness(self) -> None:
        """Restore the random states of the checkpoint."""
        if self.resumed is not None:
            restore_loading(self.loader, self.resumed["now"])
            self.resumed = None

    def _run_batch(self) -> bool:
        """Train on one batch; return whether to skip the rest of the epoch."""
        trainer, progress, hooks = self.trainer, self.progress, self.hooks
        batch_idx = progress.batch
        batch = self.epoch.take()
        batch = moved(self.precision.convert_batch(batch), trainer.device)
        trainer.is_last_batch = not self.epoch.left
        progress.stepped = []
        starting = hooks["on_train_batch_start"]
        if starting and -1 in [hook(batch, batch_idx) for hook in starting]:
            progress.close_window()
            return True
        trainer.in_training_step = True
        try:
            with self.precision.default_dtype():
                outputs = self._optimize(batch, batch_idx)
        finally:
            trainer.in_training_step = False
        self._share_buffers()
        self._count()
        progress.batch += 1
        progress.batches += 1
        self.schedules.after_batch()
        self._take_logged(batch)
        for hook in hooks["on_train_batch_end"]:
            hook(outputs, batch, batch_idx)
        self._take_logged(batch)
        self._count()
        self._write_metrics()
        progress.phase = at.BATCH_DONE
        for hook in trainer.saving_hooks["on_train_batch_end"]:
            hook(outputs, batch, batch_idx)
        return False

    def _share_buffers(self) -> None:
        """Copy the first process's buffers to all processes, after gradients have been reduced.

        So the next forward begins with equal buffers, as with DDP.
        """
        sync = self.updates.sync
        if sync is not None and sync.reductions != self.reductions:
            self.reductions = sync.reductions
            self.trainer.processes.share_buffers(self.module)

    def _take_logged(self, batch: Any) -> None:
        """Collect the values logged for this batch."""
        entries = self.module._log_entries
        if entries:
            self.trainer.metrics.take(
                entries, stage="train", per_batch=True, batch_size=batch_size_of(batch)
            )

    def _count(self) -> None:
        """Count the updates since the last call, and end the batch for the loss scale."""
        if self.updates.stepped or self.updates.scaler is not None:
            self.progress.count(self.updates.end_batch())
            self.trainer.global_step = self.progress.global_step

    def _optimize(self, batch: Any, batch_idx: int) -> Any:
        if self.module.automatic_optimization != self.is_automatic:
            raise _optimization_changed()
        if self.is_automatic:
            return self._optimize_automatically(batch, batch_idx)
        given = {"batch": batch, "batch_idx": batch_idx}
        with self.precision.forward(cache=False):
            outputs = self.step(*[given[name] for name in self.arguments])
        return _manual_outputs(outputs)

    def _optimize_automatically(self, batch: Any, batch_idx: int) -> Any:
        progress = self.progress
        if progress.window == 0:
            progress.open_window(self.epoch.left + 1)
        ends, length = progress.window_ends, progress.window
        outputs: Any = None
        for step in self._active(batch_idx):
            index = step.index
            first = index is None or not progress.pending[index]
            micro = Micro(first, ends, length)
            outputs = self._one_optimizer(step, batch, batch_idx, micro)
            if index is not None:
                if outputs is not None:
                    progress.pending[index] = True
                if ends and progress.pending[index] and not step.hosted:
                    self.updates.stepped.append(index)
            if outputs is None and self.trainer.world_size > 1 and not step.hosted:
                raise _none_in_one_process()
        if ends:
            progress.close_window()
        else:
            progress.in_window += 1
        return outputs

    def _active(self, batch_idx: int) -> Sequence[AutomaticStep]:
        """Return the steps of the optimizers that are active in a batch."""
        frequencies = self.trainer.frequencies
        if not frequencies:
            return self.automatic
        place = batch_idx % sum(frequencies)
        for index, frequency in enumerate(frequencies):
            if place < frequency:
                return self.automatic[index : index + 1]
            place -= frequency
        raise AssertionError("unreachable")

    def _one_optimizer(self, step: AutomaticStep, batch: Any, batch_idx: int, micro: Micro) -> Any:
        updates = self.updates
        updates.synchronise = micro.updates
        due = self._due(step)
        if len(self.automatic) == 1:
            outputs = step.run(batch, batch_idx, micro, due)
        else:
            assert step.index is not None
            flags = updates.toggles.switch(step.index)
            try:
                outputs = step.run(batch, batch_idx, micro, due)
            finally:
                updates.toggles.restore(flags)
        updates.synchronise = True
        return outputs

    def _due(self, step: AutomaticStep) -> tuple[bool, ...]:
        """Return, for each schedule, whether it advances inside the step if there is an update."""
        if not step.schedulers or step.index is None:
            return ()
        steps = self.progress.optimizer_steps[step.index] + 1
        return tuple(due_after_step(config, steps) for config in step.configs)

    def _validation_due(self) -> bool:
        if not self.validation:
            return False
        trainer, progress = self.trainer, self.progress
        every = trainer.check_val_every_n_epoch
        interval = trainer.val_interval
        if every is None:
            return interval is not None and progress.batches % interval == 0
        if (progress.epoch + 1) % every:
            return False
        if interval is None:
            return trainer.is_last_batch
        return progress.batch % interval == 0

    def _validate(self) -> None:
        trainer = self.trainer
        values = validate(trainer, self.module, self.validation)
        trainer.write(values)
        self.progress.phase = at.VALIDATED
        for hook in trainer.saving_hooks["on_validation_end"]:
            hook()

    def _end_epoch(self) -> None:
        trainer, metrics, module = self.trainer, self.trainer.metrics, self.module
        trainer.write(metrics.end_epoch("train", trainer.reduce_metric))
        self._call("on_train_epoch_end")
        metrics.take(module._log_entries, stage="train", per_batch=False, batch_size=1)
        trainer.write(metrics.end_epoch("train", trainer.reduce_metric))
        self.schedules.after_epoch()
        self.progress.phase = at.EPOCH_DONE
        for hook in trainer.saving_hooks["on_train_epoch_end"]:
            hook()

    def _call(self, name: str) -> None:
        self.hooks.call(name)

    def _write_metrics(self) -> None:
        """Pass the step values to the loggers, every `log_every_n_steps` batches.

        Within an accumulation window this is delayed until its end.
        """
        trainer, progress = self.trainer, self.progress
        if progress.batches % trainer.log_every_n_steps == 0:
            self.write_due = True
        if self.write_due and (not self.is_automatic or progress.stepped or progress.window == 0):
            self.write_due = False
            trainer.write(trainer.metrics.take_steps())


def _manual_outputs(outputs: Any) -> Any:
    """Return the result of a manual training step, detached.

    Raises:
        ConfigurationError: It is neither a tensor, nor a dict, nor None.
    """
    if outputs is None or isinstance(outputs, dict | Tensor):
        return detached(outputs)
    raise ConfigurationError(
        "training_step of manual optimization returns a tensor, a dict or None",
        at="training_step",
        found=type(outputs).__name__,
        why="its outputs are passed to on_train_batch_end",
        hint='return {"loss": loss}, or nothing',
    )


def _optimization_changed() -> ConfigurationError:
    return ConfigurationError(
        "automatic_optimization has changed in the middle of a fit",
        at="self.automatic_optimization",
        why="steps, schedules and counters were set up for the other kind when the fit began",
        hint="set it in __init__, or call fit again",
    )


def _none_in_one_process() -> ConfigurationError:
    return ConfigurationError(
        "training_step returned None in one of several processes",
        at="training_step",
        why="the others would wait for its gradients forever",
        hint="return a loss in every process, for example one multiplied by zero",
    )

"""`self.log`: the numbers that a module passes to its trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from stepgraph.errors import ConfigurationError
from stepgraph.train.logging.metrics import number_of
from stepgraph.train.training import Training


class Logs:
    """The logging methods of a `Module`.

    Values are appended to a list and stay on their device; a compiled step records the appends.
    The trainer empties the list after each batch.
    """

    _trainer: Training | None
    _log_entries: list[Any]
    _log_refused: str | None

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[Tensor], Tensor] = "mean",
        sync_dist: bool = False,
        batch_size: int | None = None,
    ) -> None:
        """Log a number, without waiting for the device.

        Args:
            name: The name of the metric.
            value: A tensor with one element, or a number.
            prog_bar: Show it in the progress bar.
            logger: Pass it to the loggers.
            on_step: Keep every value; by default in `training_step`.
            on_epoch: Reduce it over the epoch; by default in a validation and in epoch hooks. With
                both, the names are `name_step` and `name_epoch`.
            reduce_fx: `"mean"`, weighted by batch size, `"sum"`, `"min"`, `"max"`, or a function.
            sync_dist: Reduce the epoch's value over processes too.
            batch_size: Weight in the mean; inferred from the batch by default.

        Raises:
            ConfigurationError: The value is not one number, or logging is not possible here.
        """
        if self._log_refused is not None:
            self._refuse_log(name)
            return
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise _not_one_number(name, f"a tensor of shape {tuple(value.shape)}")
            value = value.detach().clone()
            if value.dim():
                value = value.reshape(())
        elif isinstance(value, int | float):
            value = float(value)
        else:
            raise _not_one_number(name, type(value).__name__)
        weighted = batch_size is not None
        options = (prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, weighted)
        self._log_entries.append(number_of(name, *options))
        self._log_entries.append(value)
        if batch_size is not None:
            self._log_entries.append(batch_size)

    def log_dict(self, dictionary: Mapping[str, Any], **kwargs: Any) -> None:
        """Log several numbers with the same options."""
        for name, value in dictionary.items():
            self.log(name, value, **kwargs)

    def _refuse_log(self, name: str) -> None:
        if self._trainer is None:
            warnings.warn(f"self.log({name!r}) without a Trainer does nothing", stacklevel=3)
            return
        raise ConfigurationError(
            f"self.log({name!r}) has no step or epoch to belong to",
            at=str(self._log_refused),
            why="values are averaged over the batches of an epoch",
            hint="log in training_step, validation_step, or a batch or epoch hook",
        )


def _not_one_number(name: str, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"self.log({name!r}) takes one number",
        at="the argument `value`",
        found=found,
        why="it is averaged and written as a number",
        hint="value.mean(), or several names with self.log_dict",
    )

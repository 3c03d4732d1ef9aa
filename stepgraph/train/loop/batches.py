"""The batches of an epoch: their number, and the continuation of a resumed epoch."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from stepgraph import torch_private
from stepgraph.errors import ConfigurationError
from stepgraph.train.checkpoints.randomness import random_state, set_random_state

_END = object()
_NEW_WORKERS = (
    "resuming with persistent_workers=True starts new workers: random numbers that a data set "
    "draws in them are not those of the uninterrupted run (without persistent_workers they are)"
)


def known_length(loader: Any) -> int | None:
    """Return the number of batches of a loader, or None if it is unknown before iteration.

    The length that a `DataLoader` computes from an iterable data set is not used: the data set may
    yield more or less.
    """
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def limited_length(length: int | None, limit: int | float | None, name: str) -> int | None:
    """Return the number of batches to use out of `length`.

    Args:
        length: Number of batches, or None when unknown.
        limit: A number of batches, a share between 0.0 and 1.0, or None for all.
        name: The trainer's argument.

    Raises:
        ConfigurationError: The limit is a share and the length is unknown.
    """
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return length
    if isinstance(limit, int):
        return limit if length is None else min(limit, length)
    if length is None:
        raise ConfigurationError(
            f"Trainer: {name} is a share of a loader without a length",
            at=f"the argument `{name}`",
            found=repr(limit),
            hint="a number of batches",
        )
    return math.floor(length * limit)


def checked_limit(limit: Any, name: str) -> int | float | None:
    """Return a valid limit unchanged.

    Raises:
        ConfigurationError: It is neither a count nor a share.
    """
    good = limit is None or (
        not isinstance(limit, bool)
        and (
            (isinstance(limit, int) and limit >= 0)
            or (isinstance(limit, float) and 0.0 <= limit <= 1.0)
        )
    )
    if not good:
        raise ConfigurationError(
            f"Trainer: {name} is neither a number of batches nor a share of them",
            at=f"the argument `{name}`",
            found=repr(limit),
            hint="an int from 0 on, or a float between 0.0 and 1.0",
        )
    result: int | float | None = limit
    return result


class Epoch:
    """One pass over a loader.

    With a known length no batch is prefetched, so that a data set that draws random numbers draws
    them between the same steps as in a plain loop. Otherwise, enough batches are prefetched to
    determine the length of an accumulation window.

    Args:
        loader: Any iterable of batches.
        length: Number of batches to use, or None if unknown.
        ahead: Number of batches to prefetch if the length is unknown.

    Attributes:
        start: The random state before the loader's iterator was made.
        taken: Number of batches returned so far.
        left: Number of batches left; if the length is unknown, at most `ahead + 1`.
    """

    def __init__(self, loader: Iterable[Any], length: int | None, *, ahead: int = 1) -> None:
        self.loader, self.length, self.ahead = loader, length, ahead
        self.exact = known_length(loader) is not None
        self.taken = self.left = 0
        self.start: dict[str, Any] = {}
        self._fetched: deque[Any] = deque()
        self._exhausted = False
        self._iterator: Iterator[Any] = iter(())

    def begin(self, start: dict[str, Any] | None = None, skip: int = 0) -> None:
        """Make the loader's iterator.

        Args:
            start: Random state in which to make it, of an interrupted epoch. This changes the
                random state; the caller sets it afterwards.
            skip: Number of batches that the interrupted epoch has used.
        """
        if start is not None:
            restore_loading(self.loader, start)
        self.start = loading_state(self.loader)
        self._iterator = iter(self.loader)
        self.taken = skip
        for _ in itertools.islice(self._iterator, skip):
            pass
        self.left = self._count_left()

    def take(self) -> Any:
        """Return the next batch.

        Raises:
            ConfigurationError: The loader ended before its own length.
        """
        if self._fetched:
            batch = self._fetched.popleft()
        else:
            try:
                batch = next(self._iterator)
            except StopIteration:
                raise ConfigurationError(
                    "the loader gave fewer batches than its length",
                    found=f"{self.taken} batches, len() says {known_length(self.loader)}",
                    why="the last accumulation window and the end of the epoch depend on it",
                    hint="correct its __len__, or leave it out",
                ) from None
        self.taken += 1
        self.left = self.left - 1 if self.exact else self._count_left()
        return batch

    def finish(self) -> None:
        """Exhaust the loader, as a `for` loop does: samplers may draw then, and workers stop.

        Raises:
            ConfigurationError: The loader has another batch.
        """
        whole = self.exact and self.taken == known_length(self.loader)
        if whole and next(self._iterator, _END) is not _END:
            raise ConfigurationError(
                "the loader gives more batches than its length",
                found=f"another batch after {self.taken}, as many as len() says",
                why="the last accumulation window and the end of the epoch depend on it",
                hint="correct its __len__, or leave it out",
            )
        self.close()

    def close(self) -> None:
        """Release the loader's iterator and its workers."""
        self._iterator = iter(())

    def _count_left(self) -> int:
        limit = math.inf if self.length is None else max(self.length - self.taken, 0)
        if limit and not self.exact:
            self._look_ahead()
            limit = min(limit, len(self._fetched))
        return int(limit)

    def _look_ahead(self) -> None:
        while len(self._fetched) <= self.ahead and not self._exhausted:
            try:
                self._fetched.append(next(self._iterator))
            except StopIteration:
                self._exhausted = True


def loading_state(loader: Any) -> dict[str, Any]:
    """Return the random state that determines the next batches of a loader."""
    workers = torch_private.has_live_workers(loader)
    return {**random_state(generators_of(loader)), "workers": workers}


def restore_loading(loader: Any, state: dict[str, Any]) -> None:
    """Restore what `loading_state` returned, for an equal loader.

    A loader draws a seed for its workers when it starts them. With `persistent_workers` that is
    before the first epoch only; they are started here if they were running when the state was
    saved.
    """
    if torch_private.has_live_workers(loader) != state["workers"]:
        torch_private.stop_workers(loader)
        if state["workers"]:
            iter(loader)
            warnings.warn(_NEW_WORKERS, RuntimeWarning, stacklevel=2)
    set_random_state(state, generators_of(loader))


def generators_of(loader: Any) -> list[Generator]:
    """Return the generators used by a loader and its samplers, each once."""
    found: dict[int, Generator] = {}
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = (
        loader,
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        getattr(loader, "dataset", None),
    )
    for holder in holders:
        generator = getattr(holder, "generator", None)
        if isinstance(generator, Generator):
            found.setdefault(id(generator), generator)
    return list(found.values())


def set_epoch(loader: Any, epoch: int) -> None:
    """Call `set_epoch` of the samplers that have it."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    ):
        if callable(getattr(sampler, "set_epoch", None)):
            sampler.set_epoch(epoch)  # type: ignore[union-attr]


def with_process_share(loader: Any, rank: int, world_size: int) -> Any:
    """Return a loader of this process's share, if `loader` would yield all batches in each process.

    The user's own samplers are assumed to yield the share of their process.
    """
    sampler = getattr(loader, "sampler", None)
    if world_size == 1 or not isinstance(loader, DataLoader):
        return loader
    if type(sampler) not in (RandomSampler, SequentialSampler) or loader.batch_size is None:
        return loader
    shuffle = isinstance(sampler, RandomSampler)
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=DistributedSampler(
            loader.dataset, num_replicas=world_size, rank=rank, shuffle=shuffle
        ),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on `device`; the same object for the CPU."""
    if device.type == "cpu":
        return batch
    return tree_map(
        lambda x: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x, batch
    )

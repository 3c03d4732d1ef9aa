"""The random state of a training, saved so that a resumed run draws the same numbers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Generator


def random_state(generators: Iterable[Generator] = ()) -> dict[str, Any]:
    """Return the state of every generator: torch's, CUDA's, Python's, NumPy's and the given ones.

    It consists of tensors, numbers, strings and containers, which a checkpoint may contain.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": (str(name), torch.as_tensor(np.asarray(keys, np.int64)), *map(_plain, rest)),
        "generators": [generator.get_state() for generator in generators],
    }


def set_random_state(state: dict[str, Any], generators: Iterable[Generator] = ()) -> None:
    """Restore what `random_state` returned, for the same generators in the same order."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved)


def seed_everything(seed: int) -> None:
    """Seed torch, CUDA, Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _plain(value: Any) -> int | float:
    return float(value) if isinstance(value, float) else int(value)

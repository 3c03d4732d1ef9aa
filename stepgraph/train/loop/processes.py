"""The processes of a training: one, or several started with `torchrun`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stepgraph.errors import ConfigurationError
from stepgraph.train.optimization.gradient_sync import GradientSync, share

_OPERATIONS = {"sum": "SUM", "min": "MIN", "max": "MAX"}


@dataclass(frozen=True)
class Processes:
    """This process, one of all processes of the training.

    Attributes:
        device: Its device.
        rank: Its number.
        world_size: The number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @staticmethod
    def from_environment(accelerator: str, devices: Any, strategy: str) -> Processes:
        """Return the processes defined by the trainer's arguments and `torchrun`.

        Raises:
            ConfigurationError: The two contradict each other, or an argument is unknown.
        """
        _one_of("accelerator", accelerator, ("auto", "cpu", "cuda", "gpu"))
        _one_of("strategy", strategy, ("auto", "ddp"))
        started = int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1
        if dist.is_available() and dist.is_initialized():
            started = dist.get_world_size()
        wanted = started if devices in ("auto", -1) else devices
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise ConfigurationError(
                'Trainer: devices is neither a number nor "auto"',
                at="the argument `devices`",
                found=repr(devices),
                hint='devices=1, or "auto"',
            )
        if wanted != started:
            raise ConfigurationError(
                "Trainer: a process for every device is started from outside",
                at="the argument `devices`",
                found=f"devices={devices!r}, {started} process(es) running",
                why="a Trainer does not start processes",
                hint=f"torchrun --nproc-per-node={wanted} script.py",
            )
        cuda = accelerator in ("cuda", "gpu") or (
            accelerator == "auto" and torch.cuda.is_available()
        )
        if cuda and not torch.cuda.is_available():
            raise ConfigurationError(
                "Trainer: there is no CUDA device",
                at="the argument `accelerator`",
                found=repr(accelerator),
                hint='accelerator="cpu" or "auto"',
            )
        if started > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        rank = dist.get_rank() if started > 1 else 0
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        return Processes(device, rank, started)

    def start(self, module: nn.Module) -> None:
        """Copy the parameters and buffers of the first process to every process."""
        if self.world_size > 1:
            share([*module.parameters(), *module.buffers()])

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the buffers of the first process to every process, such as running means."""
        if self.world_size > 1:
            share(module.buffers())

    def sync(self) -> GradientSync | None:
        """Return the reduction of gradients, or None for a single process."""
        return GradientSync() if self.world_size > 1 else None

    def reduce(self, value: Tensor, operation: str) -> Tensor:
        """Combine a tensor of every process: `"sum"`, `"min"` or `"max"`."""
        if self.world_size == 1:
            return value
        result = value.clone().to(self.device)
        dist.all_reduce(result, getattr(dist.ReduceOp, _OPERATIONS[operation]))
        return result

    def agreed(self, value: Tensor) -> Tensor:
        """Return the first process's value, for decisions that must be equal in all processes."""
        if self.world_size == 1:
            return value
        result = value.clone().to(self.device)
        dist.broadcast(result, 0)
        return result

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.world_size > 1:
            dist.barrier()


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(
            f"Trainer: unknown {name}",
            at=f"the argument `{name}`",
            found=repr(value),
            hint="one of " + ", ".join(map(repr, allowed)),
        )

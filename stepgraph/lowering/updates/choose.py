"""Choice of the fused update of an optimizer: CPU kernels, or Triton kernels on a GPU."""

from __future__ import annotations

from torch.optim import Optimizer

from stepgraph.lowering.updates import cpu
from stepgraph.lowering.updates.cpu import FusedUpdate
from stepgraph.lowering.updates.master_weights import Masters
from stepgraph.lowering.updates.triton import KernelUpdate, kernel_misfit


def fused_update(optimizer: Optimizer, masters: Masters | None = None) -> FusedUpdate | str:
    """Return a fused update for an optimizer, with float32 `masters` if given, or why not."""
    if _on_gpu(optimizer):
        if masters is not None:
            return "float32 master weights are kept for updates on a CPU only"
        return kernel_misfit(optimizer) or KernelUpdate(optimizer)
    return cpu.fused_update(optimizer, masters)


def misfit(optimizer: Optimizer) -> str | None:
    """Return why no fused update can replace `optimizer.step()`, or None."""
    return kernel_misfit(optimizer) if _on_gpu(optimizer) else cpu.misfit(optimizer)


def _on_gpu(optimizer: Optimizer) -> bool:
    return any(p.is_cuda for group in optimizer.param_groups for p in group["params"])

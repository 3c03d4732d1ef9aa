"""The second launch: the whole update in one pass."""

from stepgraph_kernels.sweep.kernel import sweep_kernel

__all__ = ["sweep_kernel"]

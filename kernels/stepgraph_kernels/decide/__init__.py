"""The first launch: norm, finite check, clip multiplier, counters and coefficients."""

from stepgraph_kernels.decide.kernel import decide_kernel

__all__ = ["decide_kernel"]

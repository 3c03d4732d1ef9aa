"""The launch between the two: norms of each tensor, for rules that need them."""

from stepgraph_kernels.measure.kernel import measure_kernel

__all__ = ["measure_kernel"]

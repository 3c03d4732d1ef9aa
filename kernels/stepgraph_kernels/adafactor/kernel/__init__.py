"""Adafactor in Triton: second moments from the means of their rows and columns.

    w = t^decay                          alpha = max(eps2, RMS(p)) min(lr, 1 / sqrt(t))
    R <- lerp(R, mean of g^2 over columns, w)      C <- lerp(C, mean of g^2 over rows, w)
    v = R C / max(mean of R, eps1)       (a vector keeps v itself: v <- lerp(v, g^2, w))
    u = g / sqrt(max(v, eps1^2))
    p <- (1 - lr wd) p - alpha u / max(1, RMS(u) / d)

Shazeer and Stern, arXiv 1804.04235, as `torch.optim.Adafactor` has it: eps1 in v and not in R and
C, weight decay by lr. v needs whole rows and columns, RMS(u) needs v, p needs RMS(u): three passes
over g, which is the least. The sums of g^2 are taken before the multiplier of the gradients is
known, and multiplied by its square after, so the norm for clipping is among them for nothing.
The parameter is read with the second pass, for its RMS, and updated with the third: 24 bytes an
element in float32, clipped or not.

    sums_kernel      g       -> sums of g^2 over the rows and columns of each tile, and of the tile
    decide_kernel    those   -> norm, multiplier, skip, coefficients, counters
    fold_kernel      those   -> R, C (less than a hundredth of the elements in a large matrix)
    size_kernel      g, p    -> RMS(u), RMS(p), the factor of u
    apply_kernel     g, p    -> p, and what follows in the same pass

Tensors are read as `[matrices, rows, columns]`. A program takes a tile of one matrix, or several
matrices that are smaller than a tile. All sums are added in a fixed order.
"""

from stepgraph_kernels.adafactor.kernel.apply import apply_kernel
from stepgraph_kernels.adafactor.kernel.coefficients import adafactor_prepare
from stepgraph_kernels.adafactor.kernel.fold import fold_kernel
from stepgraph_kernels.adafactor.kernel.size import size_kernel
from stepgraph_kernels.adafactor.kernel.sums import sums_kernel

__all__ = ["adafactor_prepare", "apply_kernel", "fold_kernel", "size_kernel", "sums_kernel"]

"""Adamax in Triton: Adam with the infinity norm in place of the second moment.

    g <- g + wd p
    m <- m + (1 - b1) (g - m)            u <- max(b2 u, |g| + eps)
    p <- p - lr / (1 - b1^t) * m / u

Reads p, g, m, u and writes p, m, u: 28 bytes an element in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.decide.kernel import power


@triton.jit
def adamax_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    beta1 = tl.load(hyper + 1, mask=mask, other=0.0)
    beta2 = tl.load(hyper + 2, mask=mask, other=0.0)
    eps = tl.load(hyper + 3, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 4, mask=mask, other=0.0)
    tl.store(out, (lr / (1.0 - power(beta1, step))).to(tl.float32), mask=mask)
    tl.store(out + stride, weight_decay.to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, (1.0 - beta1).to(tl.float32), mask=mask)
    tl.store(out + 3 * stride, beta2.to(tl.float32), mask=mask)
    tl.store(out + 4 * stride, eps.to(tl.float32), mask=mask)


@triton.jit
def adamax_update(param, grad, m, largest, c, k):
    grad = tl.where(k[1] == 0.0, grad, grad + k[1] * param)
    m = m + k[2] * (grad - m)
    size = tl.abs(grad) + k[4]
    largest = tl.maximum(largest * k[3], size, propagate_nan=tl.PropagateNan.ALL)
    return param - k[0] * (m / largest), m, largest, c

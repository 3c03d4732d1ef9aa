"""Lion in Triton: the sign of an interpolated momentum.

    u = sign(b1 m + (1 - b1) g)
    p <- (1 - lr wd) p - lr u
    m <- b2 m + (1 - b2) g

Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675, Algorithm 2.
Reads p, g, m and writes p, m: 20 bytes an element in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lion_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    beta1 = tl.load(hyper + 1, mask=mask, other=0.0)
    beta2 = tl.load(hyper + 2, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 3, mask=mask, other=0.0)
    tl.store(out, lr.to(tl.float32), mask=mask)
    tl.store(out + stride, (1.0 - lr * weight_decay).to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, beta1.to(tl.float32), mask=mask)
    tl.store(out + 3 * stride, (1.0 - beta1).to(tl.float32), mask=mask)
    tl.store(out + 4 * stride, beta2.to(tl.float32), mask=mask)
    tl.store(out + 5 * stride, (1.0 - beta2).to(tl.float32), mask=mask)


@triton.jit
def lion_update(param, grad, m, b, c, k):
    mixed = k[2] * m + k[3] * grad
    # a nan has no sign and stays a nan: torch.sign gives 0 for it, and hides it
    sign = tl.where(mixed > 0.0, 1.0, tl.where(mixed < 0.0, -1.0, mixed))
    return param * k[1] - k[0] * sign, k[4] * m + k[5] * grad, b, c

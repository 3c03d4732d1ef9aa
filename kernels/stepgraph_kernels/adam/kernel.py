"""Adam and AdamW in Triton.

    m <- m + (1 - b1) (g - m)            v <- b2 v + (1 - b2) g^2
    p <- (1 - lr wd) p                   AdamW; Adam adds wd p to g instead
    p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

With amsgrad, v in the last line is the largest v so far, a third state. Reads p, g, m, v and writes
p, m, v: 28 bytes an element in float32, 36 with amsgrad.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.decide.kernel import power


@triton.jit
def adam_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    beta1 = tl.load(hyper + 1, mask=mask, other=0.0)
    beta2 = tl.load(hyper + 2, mask=mask, other=0.0)
    eps = tl.load(hyper + 3, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 4, mask=mask, other=0.0)
    decoupled = tl.load(hyper + 5, mask=mask, other=0.0)
    correction1 = 1.0 - power(beta1, step)
    correction2 = 1.0 - power(beta2, step)
    tl.store(out, (1.0 - lr * weight_decay * decoupled).to(tl.float32), mask=mask)
    tl.store(out + stride, (weight_decay * (1.0 - decoupled)).to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, (1.0 - beta1).to(tl.float32), mask=mask)
    tl.store(out + 3 * stride, beta2.to(tl.float32), mask=mask)
    tl.store(out + 4 * stride, (1.0 - beta2).to(tl.float32), mask=mask)
    tl.store(out + 5 * stride, (lr / correction1).to(tl.float32), mask=mask)
    tl.store(out + 6 * stride, (1.0 / tl.sqrt(correction2)).to(tl.float32), mask=mask)
    tl.store(out + 7 * stride, eps.to(tl.float32), mask=mask)


@triton.jit
def _moments(param, grad, m, v, k):
    """Weight decay and both moments."""
    grad = tl.where(k[1] == 0.0, grad, grad + k[1] * param)
    param = param * k[0]
    m = m + k[2] * (grad - m)
    v = v * k[3] + k[4] * grad * grad
    return param, m, v


@triton.jit
def adam_update(param, grad, m, v, unused, k):
    param, m, v = _moments(param, grad, m, v, k)
    param = param - k[5] * (m / (tl.sqrt_rn(v) * k[6] + k[7]))
    return param, m, v, unused


@triton.jit
def amsgrad_update(param, grad, m, v, largest, k):
    param, m, v = _moments(param, grad, m, v, k)
    largest = tl.maximum(largest, v, propagate_nan=tl.PropagateNan.ALL)
    param = param - k[5] * (m / (tl.sqrt_rn(largest) * k[6] + k[7]))
    return param, m, v, largest

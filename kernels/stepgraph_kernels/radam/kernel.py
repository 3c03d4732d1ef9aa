"""RAdam in Triton: Adam whose step is rectified while the second moment is still unreliable.

    rho_inf = 2 / (1 - b2) - 1           rho = rho_inf - 2 t b2^t / (1 - b2^t)
    m <- m + (1 - b1) (g - m)            v <- b2 v + (1 - b2) g^2
    p <- p - lr m / (1 - b1^t) * r sqrt(1 - b2^t) / (sqrt(v) + eps)        if rho > 5
    p <- p - lr m / (1 - b1^t)                                             else
    r^2 = (rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho)

Reads p, g, m, v and writes p, m, v: 28 bytes an element in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.decide.kernel import power


@triton.jit
def radam_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    beta1 = tl.load(hyper + 1, mask=mask, other=0.0)
    beta2 = tl.load(hyper + 2, mask=mask, other=0.0)
    eps = tl.load(hyper + 3, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 4, mask=mask, other=0.0)
    decoupled = tl.load(hyper + 5, mask=mask, other=0.0)
    decayed = power(beta2, step)
    correction2 = 1.0 - decayed
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * decayed / correction2
    rectified = rho > 5.0
    above = tl.where(rectified, rho, 6.0)  # no root of a negative number on the other branch
    top = (above - 4.0) * (above - 2.0) * rho_inf
    # rho <= rho_inf, so rho_inf > 5 wherever it counts
    limit = tl.where(rectified, rho_inf, 6.0)
    bottom = (limit - 4.0) * (limit - 2.0) * above
    factor = tl.sqrt(tl.where(rectified, top / bottom * correction2, 1.0))
    tl.store(out, (1.0 - lr * weight_decay * decoupled).to(tl.float32), mask=mask)
    tl.store(out + stride, (weight_decay * (1.0 - decoupled)).to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, (1.0 - beta1).to(tl.float32), mask=mask)
    tl.store(out + 3 * stride, beta2.to(tl.float32), mask=mask)
    tl.store(out + 4 * stride, (1.0 - beta2).to(tl.float32), mask=mask)
    size = lr / (1.0 - power(beta1, step)) * factor
    tl.store(out + 5 * stride, size.to(tl.float32), mask=mask)
    tl.store(out + 6 * stride, eps.to(tl.float32), mask=mask)
    tl.store(out + 7 * stride, tl.where(rectified, 1.0, 0.0).to(tl.float32), mask=mask)


@triton.jit
def radam_update(param, grad, m, v, unused, k):
    grad = tl.where(k[1] == 0.0, grad, grad + k[1] * param)
    param = param * k[0]
    m = m + k[2] * (grad - m)
    v = v * k[3] + k[4] * grad * grad
    denominator = tl.where(k[7] == 0.0, 1.0, tl.sqrt_rn(v) + k[6])
    return param - k[5] * (m / denominator), m, v, unused

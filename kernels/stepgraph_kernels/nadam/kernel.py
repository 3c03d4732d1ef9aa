"""NAdam in Triton: Adam with Nesterov's look ahead and a momentum that warms up.

    mu_t = b1 (1 - 0.96^(t psi) / 2)      prod_t = prod_{t-1} mu_t
    m <- m + (1 - b1) (g - m)             v <- b2 v + (1 - b2) g^2
    d = sqrt(v / (1 - b2^t)) + eps
    p <- p - lr (1 - mu_t) / (1 - prod_t) g / d - lr mu_{t+1} / (1 - prod_t mu_{t+1}) m / d

Reads p, g, m, v and writes p, m, v: 28 bytes an element in float32. The running product of mu is a
scalar of the state, advanced with the step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.decide.kernel import power


@triton.jit
def nadam_prepare(hyper, step, product, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    beta1 = tl.load(hyper + 1, mask=mask, other=0.0)
    beta2 = tl.load(hyper + 2, mask=mask, other=0.0)
    eps = tl.load(hyper + 3, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 4, mask=mask, other=0.0)
    momentum_decay = tl.load(hyper + 5, mask=mask, other=0.0)
    decoupled = tl.load(hyper + 6, mask=mask, other=0.0)
    warm = tl.zeros_like(step) + 0.96
    mu = beta1 * (1.0 - 0.5 * power(warm, step * momentum_decay))
    mu_next = beta1 * (1.0 - 0.5 * power(warm, (step + 1.0) * momentum_decay))
    product = (product * mu).to(tl.float32).to(tl.float64)  # as it will be stored
    correction2 = 1.0 - power(beta2, step)
    tl.store(out, (1.0 - lr * weight_decay * decoupled).to(tl.float32), mask=mask)
    tl.store(out + stride, (weight_decay * (1.0 - decoupled)).to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, (1.0 - beta1).to(tl.float32), mask=mask)
    tl.store(out + 3 * stride, beta2.to(tl.float32), mask=mask)
    tl.store(out + 4 * stride, (1.0 - beta2).to(tl.float32), mask=mask)
    tl.store(out + 5 * stride, (1.0 / correction2).to(tl.float32), mask=mask)
    tl.store(out + 6 * stride, eps.to(tl.float32), mask=mask)
    tl.store(out + 7 * stride, (lr * (1.0 - mu) / (1.0 - product)).to(tl.float32), mask=mask)
    ahead = lr * mu_next / (1.0 - product * mu_next)
    tl.store(out + 8 * stride, ahead.to(tl.float32), mask=mask)
    tl.store(out + 9 * stride, product.to(tl.float32), mask=mask)


@triton.jit
def nadam_update(param, grad, m, v, unused, k):
    grad = tl.where(k[1] == 0.0, grad, grad + k[1] * param)
    param = param * k[0]
    m = m + k[2] * (grad - m)
    v = v * k[3] + k[4] * grad * grad
    denominator = tl.sqrt_rn(v * k[5]) + k[6]
    return param - (k[7] * grad + k[8] * m) / denominator, m, v, unused

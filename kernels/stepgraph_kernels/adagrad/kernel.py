"""Adagrad in Triton.

    g <- g + wd p
    sum <- sum + g^2
    p <- p - lr / (1 + (t - 1) lr_decay) * g / (sqrt(sum) + eps)

Reads p, g, sum and writes p, sum: 20 bytes an element in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def adagrad_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    lr_decay = tl.load(hyper + 1, mask=mask, other=0.0)
    eps = tl.load(hyper + 2, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 3, mask=mask, other=0.0)
    tl.store(out, (lr / (1.0 + (step - 1.0) * lr_decay)).to(tl.float32), mask=mask)
    tl.store(out + stride, weight_decay.to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, eps.to(tl.float32), mask=mask)


@triton.jit
def adagrad_update(param, grad, total, b, c, k):
    grad = tl.where(k[1] == 0.0, grad, grad + k[1] * param)
    total = total + grad * grad
    return param - k[0] * (grad / (tl.sqrt_rn(total) + k[2])), total, b, c

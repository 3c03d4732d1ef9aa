"""RMSprop in Triton: plain, centered, with momentum, or both.

    g <- g + wd p                        v <- a v + (1 - a) g^2
    centered: c <- c + (1 - a) (g - c)   d = sqrt(v - c^2) + eps, else d = sqrt(v) + eps
    momentum: buf <- mu buf + g / d      p <- p - lr buf, else p <- p - lr g / d

Reads p, g, v (c, buf), writes p, v (c, buf): 20 bytes an element in float32, 8 more for each of
the two options.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rmsprop_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    alpha = tl.load(hyper + 1, mask=mask, other=0.0)
    eps = tl.load(hyper + 2, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 3, mask=mask, other=0.0)
    momentum = tl.load(hyper + 4, mask=mask, other=0.0)
    tl.store(out, lr.to(tl.float32), mask=mask)
    tl.store(out + stride, weight_decay.to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, alpha.to(tl.float32), mask=mask)
    tl.store(out + 3 * stride, (1.0 - alpha).to(tl.float32), mask=mask)
    tl.store(out + 4 * stride, eps.to(tl.float32), mask=mask)
    tl.store(out + 5 * stride, momentum.to(tl.float32), mask=mask)


@triton.jit
def _square(param, grad, square, k):
    grad = tl.where(k[1] == 0.0, grad, grad + k[1] * param)
    return grad, square * k[2] + k[3] * grad * grad


@triton.jit
def rmsprop_update(param, grad, square, b, c, k):
    grad, square = _square(param, grad, square, k)
    return param - k[0] * (grad / (tl.sqrt_rn(square) + k[4])), square, b, c


@triton.jit
def momentum_update(param, grad, square, buf, c, k):
    grad, square = _square(param, grad, square, k)
    buf = k[5] * buf + grad / (tl.sqrt_rn(square) + k[4])
    return param - k[0] * buf, square, buf, c


@triton.jit
def centered_update(param, grad, square, mean, c, k):
    grad, square = _square(param, grad, square, k)
    mean = mean + k[3] * (grad - mean)
    deviation = tl.sqrt_rn(square - mean * mean)
    return param - k[0] * (grad / (deviation + k[4])), square, mean, c


@triton.jit
def centered_momentum_update(param, grad, square, buf, mean, k):
    grad, square = _square(param, grad, square, k)
    mean = mean + k[3] * (grad - mean)
    deviation = tl.sqrt_rn(square - mean * mean)
    buf = k[5] * buf + grad / (deviation + k[4])
    return param - k[0] * buf, square, buf, mean

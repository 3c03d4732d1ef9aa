"""SGD in Triton: plain, with momentum, with Nesterov's.

    g <- g + wd p
    buf <- mu buf + (1 - dampening) g     the first time: buf <- g
    p <- p - lr buf                       Nesterov: p <- p - lr (g + mu buf)

Reads p, g (and buf), writes p (and buf): 12 bytes an element in float32, 20 with momentum.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sgd_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    momentum = tl.load(hyper + 1, mask=mask, other=0.0)
    dampening = tl.load(hyper + 2, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 3, mask=mask, other=0.0)
    first = step == 1.0  # torch starts the buffer as a copy of the gradient, without dampening
    tl.store(out, lr.to(tl.float32), mask=mask)
    tl.store(out + stride, weight_decay.to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, tl.where(first, 0.0, momentum).to(tl.float32), mask=mask)
    tl.store(out + 3 * stride, tl.where(first, 1.0, 1.0 - dampening).to(tl.float32), mask=mask)
    tl.store(out + 4 * stride, momentum.to(tl.float32), mask=mask)


@triton.jit
def _decayed(param, grad, k):
    return tl.where(k[1] == 0.0, grad, grad + k[1] * param)


@triton.jit
def sgd_update(param, grad, a, b, c, k):
    return param - k[0] * _decayed(param, grad, k), a, b, c


@triton.jit
def momentum_update(param, grad, buf, b, c, k):
    buf = k[2] * buf + k[3] * _decayed(param, grad, k)
    return param - k[0] * buf, buf, b, c


@triton.jit
def nesterov_update(param, grad, buf, b, c, k):
    grad = _decayed(param, grad, k)
    buf = k[2] * buf + k[3] * grad
    return param - k[0] * (grad + k[4] * buf), buf, b, c

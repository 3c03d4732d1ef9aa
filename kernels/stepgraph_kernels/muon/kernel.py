"""Muon in Triton: the elementwise parts on either side of the orthogonalisation.

    buf <- buf + (1 - mu) (g - buf)
    u = g + mu (buf - g)                 Nesterov, else u = buf; stored in bf16
    o = Newton-Schulz(u)                 batched matrix products, see `newton_schulz.py`
    p <- (1 - lr wd) p - lr ratio o      ratio by the shape of the matrix

Reads g, buf and writes buf, u: 14 bytes an element in float32. Reads p, o and writes p: 10 bytes.
The products between cost far more than either.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_prepare(hyper, step, second, out, stride, mask):
    momentum = tl.load(hyper, mask=mask, other=0.0)
    tl.store(out, (1.0 - momentum).to(tl.float32), mask=mask)
    tl.store(out + stride, momentum.to(tl.float32), mask=mask)


@triton.jit
def gather_update(unread, grad, buf, b, c, k):
    buf = buf + k[0] * (grad - buf)
    return buf, buf, b, c


@triton.jit
def nesterov_gather_update(unread, grad, buf, b, c, k):
    buf = buf + k[0] * (grad - buf)
    return grad + k[1] * (buf - grad), buf, b, c


@triton.jit
def apply_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 1, mask=mask, other=0.0)
    ratio = tl.load(hyper + 2, mask=mask, other=0.0)
    tl.store(out, (1.0 - lr * weight_decay).to(tl.float32), mask=mask)
    tl.store(out + stride, (lr * ratio).to(tl.float32), mask=mask)


@triton.jit
def apply_update(param, direction, a, b, c, k):
    return param * k[0] - k[1] * direction, a, b, c

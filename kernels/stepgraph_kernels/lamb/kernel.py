"""LAMB in Triton: an Adam step, scaled layer by layer to the size of the weights.

    m <- m + (1 - b1) (g - m)            v <- b2 v + (1 - b2) g^2
    u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd p
    p <- p - lr |p| / |u| u

You et al., Large Batch Optimization for Deep Learning, arXiv 1904.00962, Algorithm 2, with the
identity for phi. Two passes: the first reads p, g, m, v and writes m, v, the second reads p, m, v
and writes p: 40 bytes an element in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.decide.kernel import power


@triton.jit
def lamb_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    beta1 = tl.load(hyper + 1, mask=mask, other=0.0)
    beta2 = tl.load(hyper + 2, mask=mask, other=0.0)
    eps = tl.load(hyper + 3, mask=mask, other=0.0)
    weight_decay = tl.load(hyper + 4, mask=mask, other=0.0)
    correction1 = 1.0 - power(beta1, step)
    correction2 = 1.0 - power(beta2, step)
    tl.store(out, (1.0 - beta1).to(tl.float32), mask=mask)
    tl.store(out + stride, beta2.to(tl.float32), mask=mask)
    tl.store(out + 2 * stride, (1.0 - beta2).to(tl.float32), mask=mask)
    tl.store(out + 3 * stride, (1.0 / correction1).to(tl.float32), mask=mask)
    tl.store(out + 4 * stride, (1.0 / tl.sqrt(correction2)).to(tl.float32), mask=mask)
    tl.store(out + 5 * stride, eps.to(tl.float32), mask=mask)
    tl.store(out + 6 * stride, weight_decay.to(tl.float32), mask=mask)
    tl.store(out + 7 * stride, lr.to(tl.float32), mask=mask)
    # the ninth is the ratio of norms, written by the launch between


@triton.jit
def _direction(param, m, v, k):
    return m * k[3] / (tl.sqrt_rn(v) * k[4] + k[5]) + k[6] * param


@triton.jit
def lamb_measure(param, grad, m, v, k):
    m = m + k[0] * (grad - m)
    v = v * k[1] + k[2] * grad * grad
    return _direction(param, m, v, k), m, v


@triton.jit
def lamb_update(param, grad, m, v, unused, k):
    return param - k[7] * k[8] * _direction(param, m, v, k), m, v, unused

"""What a tensor's hyper-parameters and count of steps come to."""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.decide.kernel import power

# Coefficients of a tensor.
WEIGHT = tl.constexpr(0)
DECAY = tl.constexpr(1)
RHO = tl.constexpr(2)
EPS1 = tl.constexpr(3)
EPS1_SQUARE = tl.constexpr(4)
EPS2 = tl.constexpr(5)
THRESHOLD = tl.constexpr(6)
FACTOR = tl.constexpr(7)


@triton.jit
def adafactor_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    beta2_decay = tl.load(hyper + 1, mask=mask, other=0.0)
    eps1 = tl.load(hyper + 2, mask=mask, other=0.0)
    eps2 = tl.load(hyper + 3, mask=mask, other=0.0)
    threshold = tl.load(hyper + 4, mask=mask, other=1.0)
    weight_decay = tl.load(hyper + 5, mask=mask, other=0.0)
    relative = 1.0 / tl.sqrt(tl.where(mask, step, 1.0))
    rho = tl.where(relative < lr, relative, lr)
    tl.store(out + WEIGHT * stride, power(step, beta2_decay).to(tl.float32), mask=mask)
    tl.store(out + DECAY * stride, (1.0 - lr * weight_decay).to(tl.float32), mask=mask)
    tl.store(out + RHO * stride, rho.to(tl.float32), mask=mask)
    tl.store(out + EPS1 * stride, eps1.to(tl.float32), mask=mask)
    tl.store(out + EPS1_SQUARE * stride, (eps1 * eps1).to(tl.float32), mask=mask)
    tl.store(out + EPS2 * stride, eps2.to(tl.float32), mask=mask)
    tl.store(out + THRESHOLD * stride, threshold.to(tl.float32), mask=mask)
    # the eighth is the factor of the update, written by `size_kernel`

"""The second launch: the whole update of any number of tensors, in one pass over memory.

    g <- g * multiplier                        (unscaled and clipped)
    p, states <- the optimizer's rule          (in float32, whatever the storage)
    shadow <- p in low precision               average <- average + w (p - average)
    grad <- 0, or the clipped gradient, or left alone

Reads p, g and the states, writes p and the states: 28 bytes an element for AdamW in float32. The
shadow adds 2, the average 8, zeroed gradients 4 or 2.

An update that is skipped leaves p and the states alone and still does the rest, as a step does in
eager mode: `zero_grad`, the average and the cast are the user's lines after `scaler.step`.

Vector width: a chunk is a body of `length // 8 * 8` elements, whose mask is constant over eight
lanes and so does not break 128-bit accesses, and a tail of one eight-lane block.
"""

from __future__ import annotations

import triton
import triton.language as tl

PARAM_ROW = tl.constexpr(0)
GRAD_ROW = tl.constexpr(1)
STATE_ROW = tl.constexpr(2)
SHADOW_ROW = tl.constexpr(5)
AVERAGE_ROW = tl.constexpr(6)
OWN_ROWS = tl.constexpr(2)


@triton.jit
def _pointer(addresses, row, tensors, tensor, offset, TYPE: tl.constexpr, ALIGN: tl.constexpr):
    address = tl.load(addresses + row * tensors + tensor)
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), ALIGN) + offset


@triton.jit
def _coefficient(own, tensors, index: tl.constexpr, COEFFICIENTS: tl.constexpr):
    # past the last one: any value, nobody reads it
    return tl.load(own + (index if index < COEFFICIENTS else 0) * tensors)


@triton.jit
def _average(average, param, weight):
    """`torch.lerp`, both of its forms: exact at weight 0 and at weight 1."""
    near = weight < 0.5
    return tl.where(near, average, param) + tl.where(near, weight, weight - 1.0) * (param - average)


@triton.jit
def _after(
    offsets, mask, param, grad, grad_ptr, shadow_ptr, average_ptr, weight,
    GRAD: tl.constexpr, SHADOW: tl.constexpr, HAS_SHADOW: tl.constexpr, HAS_AVERAGE: tl.constexpr,
    GRADS: tl.constexpr,
):  # fmt: skip
    """What follows the update in the same pass; `grad` is unscaled and clipped."""
    if HAS_SHADOW:
        tl.store(shadow_ptr + offsets, param.to(SHADOW), mask=mask)
    if HAS_AVERAGE:
        average = tl.load(average_ptr + offsets, mask=mask, other=0.0)
        tl.store(average_ptr + offsets, _average(average, param, weight), mask=mask)
    if GRADS == "zero":
        tl.store(grad_ptr + offsets, tl.zeros_like(grad).to(GRAD), mask=mask)
    if GRADS == "clipped":
        tl.store(grad_ptr + offsets, grad.to(GRAD), mask=mask)


@triton.jit
def _span(
    offsets, mask, param_ptr, grad_ptr, a_ptr, b_ptr, c_ptr, shadow_ptr, average_ptr,
    multiplier, sign, weight, k,
    UPDATE: tl.constexpr, STATES: tl.constexpr, STORES: tl.constexpr,
    PARAM: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, SHADOW: tl.constexpr,
    HAS_SHADOW: tl.constexpr, HAS_AVERAGE: tl.constexpr, GRADS: tl.constexpr,
    EVICTION: tl.constexpr,
):  # fmt: skip
    """Update the elements at `offsets`."""
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * multiplier
    param = tl.load(param_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    a = param
    b = param
    c = param
    if STATES > 0:
        a = tl.load(a_ptr + offsets, mask=mask, other=0.0, eviction_policy=EVICTION)
        a = a.to(tl.float32)
    if STATES > 1:
        b = tl.load(b_ptr + offsets, mask=mask, other=0.0, eviction_policy=EVICTION)
        b = b.to(tl.float32)
    if STATES > 2:
        c = tl.load(c_ptr + offsets, mask=mask, other=0.0, eviction_policy=EVICTION)
        c = c.to(tl.float32)
    param, a, b, c = UPDATE(param, grad * sign, a, b, c, k)
    tl.store(param_ptr + offsets, param.to(PARAM), mask=mask)
    if STORES > 0:
        tl.store(a_ptr + offsets, a.to(STATE), mask=mask, eviction_policy=EVICTION)
    if STORES > 1:
        tl.store(b_ptr + offsets, b.to(STATE), mask=mask, eviction_policy=EVICTION)
    if STORES > 2:
        tl.store(c_ptr + offsets, c.to(STATE), mask=mask, eviction_policy=EVICTION)
    _after(
        offsets, mask, param, grad, grad_ptr, shadow_ptr, average_ptr, weight,
        GRAD, SHADOW, HAS_SHADOW, HAS_AVERAGE, GRADS,
    )  # fmt: skip


@triton.jit
def _skipped_span(
    offsets, mask, param_ptr, grad_ptr, shadow_ptr, average_ptr, multiplier, weight,
    GRAD: tl.constexpr, SHADOW: tl.constexpr, HAS_SHADOW: tl.constexpr, HAS_AVERAGE: tl.constexpr,
    GRADS: tl.constexpr,
):  # fmt: skip
    """What a step does around an update that it skips."""
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * multiplier
    param = tl.load(param_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    _after(
        offsets, mask, param, grad, grad_ptr, shadow_ptr, average_ptr, weight,
        GRAD, SHADOW, HAS_SHADOW, HAS_AVERAGE, GRADS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tensors", "first_chunk"])
def sweep_kernel(
    addresses,  # [9, tensors] int64, one row for each role
    chunk_tensor,  # [chunks] int32
    chunk_offset,  # [chunks] int64, in elements, a multiple of 16
    chunk_length,  # [chunks] int32, in elements
    coefficients,  # [2 + family's, tensors] float32, from the first launch
    verdict,  # [4] float32, from the first launch
    tensors,
    first_chunk,
    UPDATE: tl.constexpr,
    STATES: tl.constexpr,
    STORES: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    SHADOW: tl.constexpr,
    PARAM_ALIGN: tl.constexpr,
    GRAD_ALIGN: tl.constexpr,
    STATE_ALIGN: tl.constexpr,
    SHADOW_ALIGN: tl.constexpr,
    AVERAGE_ALIGN: tl.constexpr,
    HAS_SHADOW: tl.constexpr,
    HAS_AVERAGE: tl.constexpr,
    GRADS: tl.constexpr,
    EVICTION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each chunk."""
    chunk = first_chunk + tl.program_id(0)
    tensor = tl.load(chunk_tensor + chunk)
    offset = tl.multiple_of(tl.load(chunk_offset + chunk), 16)
    length = tl.load(chunk_length + chunk)
    body = (length // 8) * 8
    tail = body + tl.arange(0, 8)

    param_ptr = _pointer(addresses, PARAM_ROW, tensors, tensor, offset, PARAM, PARAM_ALIGN)
    grad_ptr = _pointer(addresses, GRAD_ROW, tensors, tensor, offset, GRAD, GRAD_ALIGN)
    shadow_ptr = param_ptr
    average_ptr = param_ptr
    if HAS_SHADOW:
        shadow_ptr = _pointer(addresses, SHADOW_ROW, tensors, tensor, offset, SHADOW, SHADOW_ALIGN)
    if HAS_AVERAGE:
        average_ptr = _pointer(
            addresses, AVERAGE_ROW, tensors, tensor, offset, tl.float32, AVERAGE_ALIGN
        )
    sign = tl.load(coefficients + tensor)
    weight = tl.load(coefficients + tensors + tensor)
    multiplier = tl.load(verdict + 1)

    if tl.load(verdict + 2) == 0.0:
        a_ptr = param_ptr
        b_ptr = param_ptr
        c_ptr = param_ptr
        if STATES > 0:
            a_ptr = _pointer(addresses, STATE_ROW, tensors, tensor, offset, STATE, STATE_ALIGN)
        if STATES > 1:
            b_ptr = _pointer(addresses, STATE_ROW + 1, tensors, tensor, offset, STATE, STATE_ALIGN)
        if STATES > 2:
            c_ptr = _pointer(addresses, STATE_ROW + 2, tensors, tensor, offset, STATE, STATE_ALIGN)
        own = coefficients + OWN_ROWS * tensors + tensor
        k = (
            _coefficient(own, tensors, 0, COEFFICIENTS),
            _coefficient(own, tensors, 1, COEFFICIENTS),
            _coefficient(own, tensors, 2, COEFFICIENTS),
            _coefficient(own, tensors, 3, COEFFICIENTS),
            _coefficient(own, tensors, 4, COEFFICIENTS),
            _coefficient(own, tensors, 5, COEFFICIENTS),
            _coefficient(own, tensors, 6, COEFFICIENTS),
            _coefficient(own, tensors, 7, COEFFICIENTS),
            _coefficient(own, tensors, 8, COEFFICIENTS),
            _coefficient(own, tensors, 9, COEFFICIENTS),
        )
        for start in range(0, body, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            _span(
                offsets, offsets < body, param_ptr, grad_ptr, a_ptr, b_ptr, c_ptr,
                shadow_ptr, average_ptr, multiplier, sign, weight, k,
                UPDATE, STATES, STORES, PARAM, GRAD, STATE, SHADOW,
                HAS_SHADOW, HAS_AVERAGE, GRADS, EVICTION,
            )  # fmt: skip
        if body < length:
            _span(
                tail, tail < length, param_ptr, grad_ptr, a_ptr, b_ptr, c_ptr,
                shadow_ptr, average_ptr, multiplier, sign, weight, k,
                UPDATE, STATES, STORES, PARAM, GRAD, STATE, SHADOW,
                HAS_SHADOW, HAS_AVERAGE, GRADS, EVICTION,
            )  # fmt: skip
    elif HAS_SHADOW or HAS_AVERAGE or GRADS != "keep":
        for start in range(0, body, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            _skipped_span(
                offsets, offsets < body, param_ptr, grad_ptr, shadow_ptr, average_ptr,
                multiplier, weight, GRAD, SHADOW, HAS_SHADOW, HAS_AVERAGE, GRADS,
            )  # fmt: skip
        if body < length:
            _skipped_span(
                tail, tail < length, param_ptr, grad_ptr, shadow_ptr, average_ptr,
                multiplier, weight, GRAD, SHADOW, HAS_SHADOW, HAS_AVERAGE, GRADS,
            )  # fmt: skip

"""Layer-wise norms: update the states, and leave a ratio of norms for the sweep that follows.

    direction, states <- the rule's measure      (states are written, the direction is not)
    ratio = |p| / |direction|, for each tensor   (1 where either norm is 0)

Reads p, g and the states, writes the states. The direction is computed again by the sweep rather
than stored: for LAMB 24 + 16 bytes an element instead of 48.

Each chunk leaves two partial sums; the program that finishes a tensor's last chunk adds them in
the order of the chunks, so the ratio is bitwise the same from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.sweep.kernel import (
    GRAD_ROW,
    OWN_ROWS,
    PARAM_ROW,
    STATE_ROW,
    _coefficient,
    _pointer,
)


@triton.jit
def _span(
    offsets, mask, param_ptr, grad_ptr, a_ptr, b_ptr, multiplier, k,
    MEASURE: tl.constexpr, STATE: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """Update two states at `offsets`; return the squares of parameter and direction."""
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * multiplier
    param = tl.load(param_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    direction, a, b = MEASURE(param, grad, a, b, k)
    tl.store(a_ptr + offsets, a.to(STATE), mask=mask, eviction_policy=EVICTION)
    tl.store(b_ptr + offsets, b.to(STATE), mask=mask, eviction_policy=EVICTION)
    # where: a masked lane has a direction too, 0 / eps at best and 0 / 0 at worst
    return param * param, tl.where(mask, direction * direction, 0.0)


@triton.jit
def _ratio(partials, first, count, chunks, WIDTH: tl.constexpr):
    """|param| / |direction| from the partial sums of one tensor, in the order of its chunks."""
    params = tl.zeros([WIDTH], dtype=tl.float64)
    directions = tl.zeros([WIDTH], dtype=tl.float64)
    for start in range(0, count, WIDTH):
        lane = start + tl.arange(0, WIDTH)
        place = partials + first + lane
        # .cg: other programs wrote these, the first-level cache may be stale
        some = tl.load(place, mask=lane < count, other=0.0, cache_modifier=".cg")
        more = tl.load(place + chunks, mask=lane < count, other=0.0, cache_modifier=".cg")
        params += some.to(tl.float64)
        directions += more.to(tl.float64)
    numerator = tl.sqrt_rn(tl.sum(params, axis=0).to(tl.float32))
    denominator = tl.sqrt_rn(tl.sum(directions, axis=0).to(tl.float32))
    product = numerator * denominator
    return tl.where(product == 0.0, 1.0, numerator / tl.where(product == 0.0, 1.0, denominator))


@triton.jit(do_not_specialize=["tensors", "chunks", "first_chunk"])
def measure_kernel(
    addresses,  # [9, tensors] int64, one row for each role
    chunk_tensor,  # [chunks] int32
    chunk_offset,  # [chunks] int64, in elements, a multiple of 16
    chunk_length,  # [chunks] int32, in elements
    chunk_place,  # [chunks] int32, where its partial sums go: a tensor's lie side by side
    tensor_place,  # [tensors] int32, the first place of a tensor
    tensor_chunks,  # [tensors] int32, how many chunks it has
    arrivals,  # [tensors] int32, zero before and after
    partials,  # [2, chunks] float32, scratch
    coefficients,  # [2 + family's, tensors] float32; the last of a tensor is written: the ratio
    verdict,  # [4] float32, from the first launch
    tensors,
    chunks,
    first_chunk,
    MEASURE: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    PARAM_ALIGN: tl.constexpr,
    GRAD_ALIGN: tl.constexpr,
    STATE_ALIGN: tl.constexpr,
    EVICTION: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program for each chunk."""
    if tl.load(verdict + 2) == 0.0:
        chunk = first_chunk + tl.program_id(0)
        tensor = tl.load(chunk_tensor + chunk)
        offset = tl.multiple_of(tl.load(chunk_offset + chunk), 16)
        length = tl.load(chunk_length + chunk)
        body = (length // 8) * 8
        param_ptr = _pointer(addresses, PARAM_ROW, tensors, tensor, offset, PARAM, PARAM_ALIGN)
        grad_ptr = _pointer(addresses, GRAD_ROW, tensors, tensor, offset, GRAD, GRAD_ALIGN)
        a_ptr = _pointer(addresses, STATE_ROW, tensors, tensor, offset, STATE, STATE_ALIGN)
        b_ptr = _pointer(addresses, STATE_ROW + 1, tensors, tensor, offset, STATE, STATE_ALIGN)
        multiplier = tl.load(verdict + 1) * tl.load(coefficients + tensor)
        own = coefficients + OWN_ROWS * tensors + tensor
        k = (
            _coefficient(own, tensors, 0, COEFFICIENTS),
            _coefficient(own, tensors, 1, COEFFICIENTS),
            _coefficient(own, tensors, 2, COEFFICIENTS),
            _coefficient(own, tensors, 3, COEFFICIENTS),
            _coefficient(own, tensors, 4, COEFFICIENTS),
            _coefficient(own, tensors, 5, COEFFICIENTS),
            _coefficient(own, tensors, 6, COEFFICIENTS),
        )
        params = tl.zeros([BLOCK], dtype=tl.float32)
        directions = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(0, body, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            some, more = _span(
                offsets, offsets < body, param_ptr, grad_ptr, a_ptr, b_ptr, multiplier, k,
                MEASURE, STATE, EVICTION,
            )  # fmt: skip
            params += some
            directions += more
        square = tl.sum(params, axis=0)
        size = tl.sum(directions, axis=0)
        if body < length:
            tail = body + tl.arange(0, 8)
            last, rest = _span(
                tail, tail < length, param_ptr, grad_ptr, a_ptr, b_ptr, multiplier, k,
                MEASURE, STATE, EVICTION,
            )  # fmt: skip
            square += tl.sum(last, axis=0)
            size += tl.sum(rest, axis=0)
        place = tl.load(chunk_place + chunk)
        tl.store(partials + place, square)
        tl.store(partials + chunks + place, size)
        tl.debug_barrier()
        count = tl.load(tensor_chunks + tensor)
        if tl.atomic_add(arrivals + tensor, 1, sem="acq_rel", scope="gpu") == count - 1:
            first = tl.load(tensor_place + tensor)
            ratio = _ratio(partials, first, count, chunks, WIDTH)
            tl.store(own + (COEFFICIENTS - 1) * tensors, ratio)
            tl.store(arrivals + tensor, 0)

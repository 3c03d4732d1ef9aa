"""The first launch: what the second one needs to know, for any number of tensors.

    total = sum of g^2 over all tensors          norm = sqrt(total) / scale
    coef  = min(1, max_norm / (norm + 1e-6))     multiplier = coef / scale
    skip  = some g is inf or nan, or the caller has found one
    step <- step + 1, and the coefficients that follow from it, unless skipped

Reads every gradient once (4 bytes an element in float32), or none of them when there is no norm to
take and nothing to check. Each program sums its chunks in their order and leaves one partial; the
last one to arrive adds the partials in the order of the programs, so the result does not depend on
who was last: it is bitwise the same from run to run. Nothing is read back by the host.

Partials are float32, their sum is float64. Hyper-parameters and bias corrections are float64, as
they are in Python: `1 - 0.999` in float32 is off by one part in a hundred thousand.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Rows of the table of addresses, and of the coefficients that the harness itself needs.
GRAD_ROW = tl.constexpr(1)
COUNTER_ROW = tl.constexpr(7)
SIGN_ROW = tl.constexpr(0)
AVERAGE_ROW = tl.constexpr(1)
OWN_ROWS = tl.constexpr(2)


@triton.jit
def power(base, exponent):
    """`base ** exponent` for float64 blocks with a base that is not negative; 0 for base 0."""
    positive = base > 0.0
    logarithm = tl.log2(tl.where(positive, base, 1.0))
    return tl.where(positive, tl.exp2(exponent * logarithm), 0.0)


@triton.jit
def _squares(pointer, length, BLOCK: tl.constexpr):
    """Sum of squares, and count of values that are not finite, in one chunk."""
    body = (length // 8) * 8  # a mask constant over 8 lanes leaves 128-bit loads whole
    total = tl.zeros([BLOCK], dtype=tl.float32)
    broken = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, body, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        grad = tl.load(pointer + offsets, mask=offsets < body, other=0.0).to(tl.float32)
        total += grad * grad
        broken += tl.where(tl.abs(grad) < float("inf"), 0, 1)  # nan compares false
    square = tl.sum(total, axis=0)
    count = tl.sum(broken, axis=0)
    if body < length:
        tail = body + tl.arange(0, 8)
        rest = tl.load(pointer + tail, mask=tail < length, other=0.0).to(tl.float32)
        square += tl.sum(rest * rest, axis=0)
        count += tl.sum(tl.where(tl.abs(rest) < float("inf"), 0, 1), axis=0)
    return square, count


@triton.jit
def _chunk_squares(address, offset, length, kind, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    """`_squares` for a gradient of whichever dtype and alignment `kind` names."""
    square = 0.0
    count = 0
    if KINDS & 1:
        if kind == 0:
            aligned = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16) + offset
            square, count = _squares(aligned, length, BLOCK)
    if KINDS & 2:
        if kind == 1:
            aligned = tl.multiple_of(address.to(tl.pointer_type(tl.bfloat16)), 16) + offset
            square, count = _squares(aligned, length, BLOCK)
    if KINDS & 4:
        if kind == 2:
            aligned = tl.multiple_of(address.to(tl.pointer_type(tl.float16)), 16) + offset
            square, count = _squares(aligned, length, BLOCK)
    if KINDS & 8:
        if kind == 3:
            anywhere = address.to(tl.pointer_type(tl.float32)) + offset
            square, count = _squares(anywhere, length, BLOCK)
    if KINDS & 16:
        if kind == 4:
            anywhere = address.to(tl.pointer_type(tl.bfloat16)) + offset
            square, count = _squares(anywhere, length, BLOCK)
    if KINDS & 32:
        if kind == 5:
            anywhere = address.to(tl.pointer_type(tl.float16)) + offset
            square, count = _squares(anywhere, length, BLOCK)
    return square, count


@triton.jit
def _gradient_squares(
    addresses, grad_kind, chunk_tensor, chunk_offset, chunk_length, tensors, chunk,
    KINDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_squares` for one chunk of the chunk map."""
    tensor = tl.load(chunk_tensor + chunk)
    address = tl.load(addresses + GRAD_ROW * tensors + tensor)
    offset = tl.multiple_of(tl.load(chunk_offset + chunk), 16)
    length = tl.load(chunk_length + chunk)
    kind = tl.load(grad_kind + tensor)
    return _chunk_squares(address, offset, length, kind, KINDS, BLOCK)


@triton.jit
def _judge(
    total,
    broken,
    scale,
    found_inf,
    max_norm,
    verdict,
    CLIP: tl.constexpr,
    CHECK: tl.constexpr,
):
    """Write norm, multiplier and skip; return skip as a number."""
    inverse = 1.0 / tl.load(scale)
    norm = tl.sqrt_rn(total) * inverse
    multiplier = inverse
    if CLIP:
        coef = tl.load(max_norm) / (norm + 1e-6)
        # a nan norm stays nan, as in torch.clamp: only a finite check may hide it
        multiplier = inverse * tl.where(coef > 1.0, 1.0, coef)
    skip = tl.where(tl.load(found_inf) == 0.0, 0.0, 1.0)
    if CHECK:
        skip = tl.where(broken > 0, 1.0, skip)
    tl.store(verdict, norm)
    tl.store(verdict + 1, multiplier)
    tl.store(verdict + 2, skip)
    return skip


@triton.jit
def _prepare(
    addresses,
    tensor_group,
    hyper,
    coefficients,
    tensors,
    PREPARE: tl.constexpr,
    HYPERS: tl.constexpr,
    COUNTERS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Coefficients for this program's share of the tensors, as of the next step.

    They do not depend on the norm, so all programs take part before it is known. A skipped update
    leaves them unused.
    """
    for first in range(tl.program_id(0) * WIDTH, tensors, tl.num_programs(0) * WIDTH):
        index = first + tl.arange(0, WIDTH)
        here = index < tensors
        row = hyper + tl.load(tensor_group + index, mask=here, other=0) * HYPERS
        sign = tl.load(row, mask=here, other=0.0).to(tl.float32)
        weight = tl.load(row + 1, mask=here, other=0.0).to(tl.float32)
        tl.store(coefficients + SIGN_ROW * tensors + index, sign, mask=here)
        tl.store(coefficients + AVERAGE_ROW * tensors + index, weight, mask=here)
        step = tl.zeros([WIDTH], dtype=tl.float64)
        second = tl.zeros([WIDTH], dtype=tl.float64)
        if COUNTERS > 0:
            place = _counter(addresses, COUNTER_ROW, tensors, index, here)
            step = tl.load(place, mask=here, other=0.0).to(tl.float64) + 1.0
        if COUNTERS > 1:
            place = _counter(addresses, COUNTER_ROW + 1, tensors, index, here)
            second = tl.load(place, mask=here, other=0.0).to(tl.float64)
        PREPARE(row + 2, step, second, coefficients + OWN_ROWS * tensors + index, tensors, here)


@triton.jit
def _counter(addresses, row, tensors, index, mask):
    address = tl.load(addresses + row * tensors + index, mask=mask, other=0)
    return address.to(tl.pointer_type(tl.float32))


@triton.jit
def _advance(
    skip,
    addresses,
    coefficients,
    tensors,
    COUNTERS: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Advance the counters of all tensors, unless the update is skipped."""
    if COUNTERS > 0:
        stop = tl.where(skip == 0.0, tensors, 0)
        for first in range(0, stop, WIDTH):
            index = first + tl.arange(0, WIDTH)
            here = index < tensors
            place = _counter(addresses, COUNTER_ROW, tensors, index, here)
            tl.store(place, tl.load(place, mask=here, other=0.0) + 1.0, mask=here)
            if COUNTERS > 1:
                place = _counter(addresses, COUNTER_ROW + 1, tensors, index, here)
                last = coefficients + (OWN_ROWS + COEFFICIENTS - 1) * tensors + index
                # .cg: another program may have written it
                value = tl.load(last, mask=here, other=0.0, cache_modifier=".cg")
                tl.store(place, value, mask=here)


@triton.jit(do_not_specialize=["tensors", "chunks"])
def decide_kernel(
    addresses,  # [9, tensors] int64, one row for each role
    grad_kind,  # [tensors] int32, which dtype and alignment the gradient has
    chunk_tensor,  # [chunks] int32
    chunk_offset,  # [chunks] int64, in elements, a multiple of 16
    chunk_length,  # [chunks] int32, in elements
    partial_square,  # [programs] float32, scratch
    partial_broken,  # [programs] int32, scratch
    arrivals,  # [1] int32, zero before and after
    scale,  # [] float32, what the loss was multiplied by
    found_inf,  # [] float32, not zero: skip this update
    max_norm,  # [] float32
    verdict,  # [4] float32: norm, multiplier, skip, unused. Written
    tensor_group,  # [tensors] int32
    hyper,  # [groups, HYPERS] float64
    coefficients,  # [2 + family's, tensors] float32. Written
    sums,  # [2, chunks] float32: squares, values that are not finite. Read if `SUMMED`
    tensors,
    chunks,
    PREPARE: tl.constexpr,
    HYPERS: tl.constexpr,
    COUNTERS: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    CLIP: tl.constexpr,
    CHECK: tl.constexpr,
    KINDS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTIALS: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """At most `PARTIALS` programs.

    Without `CLIP` and `CHECK` no gradient is read; nor with `SUMMED`: a launch before has done it.
    """
    _prepare(
        addresses, tensor_group, hyper, coefficients, tensors, PREPARE, HYPERS, COUNTERS, WIDTH
    )
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    if CLIP or CHECK:
        square = 0.0
        broken = 0
        for chunk in range(program, chunks, programs):
            if SUMMED:
                more = tl.load(sums + chunk)
                worse = tl.where(tl.load(sums + chunks + chunk) > 0.0, 1, 0)
            else:
                more, worse = _gradient_squares(
                    addresses, grad_kind, chunk_tensor, chunk_offset, chunk_length, tensors, chunk,
                    KINDS, BLOCK,
                )  # fmt: skip
            square += more
            broken += worse
        tl.store(partial_square + program, square)
        tl.store(partial_broken + program, broken)
    tl.debug_barrier()
    if tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == programs - 1:
        total = 0.0
        count = 0
        if CLIP or CHECK:
            lane = tl.arange(0, PARTIALS)
            # .cg: other programs wrote these, the first-level cache may be stale
            squares = tl.load(
                partial_square + lane, mask=lane < programs, other=0.0, cache_modifier=".cg"
            )
            flags = tl.load(
                partial_broken + lane, mask=lane < programs, other=0, cache_modifier=".cg"
            )
            total = tl.sum(squares.to(tl.float64), axis=0).to(tl.float32)
            count = tl.sum(tl.where(flags > 0, 1, 0), axis=0)
        skip = _judge(total, count, scale, found_inf, max_norm, verdict, CLIP, CHECK)
        _advance(skip, addresses, coefficients, tensors, COUNTERS, COEFFICIENTS, PARTIALS)
        tl.store(arrivals, 0)

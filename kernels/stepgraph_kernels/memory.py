"""What tensors the kernels can take, and the refusal of all others before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from stepgraph_kernels.spec import Family, Rule, Target

STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_targets(family: Family, rules: Sequence[Rule], targets: Sequence[Target]) -> None:
    """Refuse what the kernels would compute wrongly.

    Args:
        family: The optimizer, for its name and counters.
        rules: The rule of each target.
        targets: The parameters and what moves with them. Only read.

    Raises:
        ValueError: If a tensor has another device, dtype, shape or layout than its parameter's
            kernel needs. The message names the tensor.
    """
    for rule, target in zip(rules, targets, strict=True):
        _check_param(family, target, targets[0].param.device)
        for role, tensor in _operands(rule, target):
            if rule.factored and role in rule.states:
                _check_factor(family, target, role, tensor)
            else:
                _check_operand(family, target, role, tensor)
        if rule.factored and target.param.dim() > 1 and not target.param.is_contiguous():
            why = f"strides are {list(target.param.stride())}, a factored one must be contiguous"
            raise _refusal(family, target, "param", why)
        state_dtypes = {target.state[name].dtype for name in rule.states}
        if len(state_dtypes) > 1:
            listed = ", ".join(f"{n} is {target.state[n].dtype}" for n in rule.states)
            raise _refusal(family, target, "state", f"its states differ in dtype: {listed}")
        if target.average is not None and target.average.dtype != torch.float32:
            found = target.average.dtype
            raise _refusal(family, target, "average", f"dtype is {found}, it must be float32")
        for name in family.counters:
            _check_counter(family, target, name)


def check_overlaps(family: Family, rules: Sequence[Rule], targets: Sequence[Target]) -> None:
    """Refuse two tensors of one update on the same bytes: their writes would race.

    Args:
        family: The optimizer, for its name and counters.
        rules: The rule of each target.
        targets: Checked by `check_targets`, so that each is one stretch of memory.

    Raises:
        ValueError: If two tensors share memory. The message names both.
    """
    spans: list[tuple[int, int, str, Target]] = []
    for rule, target in zip(rules, targets, strict=True):
        counters = [(n, target.state[n]) for n in family.counters if n in target.state]
        for role, tensor in [("param", target.param), *_operands(rule, target), *counters]:
            if tensor.numel():
                start = tensor.data_ptr()
                stop = start + tensor.numel() * tensor.element_size()
                spans.append((start, stop, role, target))
    spans.sort(key=lambda span: span[:2])
    for before, after in pairwise(spans):
        if after[0] < before[1]:
            raise _refusal(
                family,
                after[3],
                after[2],
                f"shares memory with the {before[2]} of {before[3].name}",
            )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each place once."""
    expected = 1
    for size, stride in sorted(_strides(tensor), key=lambda pair: pair[1]):
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether equal indices lie at equal distances from the first element."""
    return _strides(one) == _strides(other)


def _strides(tensor: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the dimensions that have one; a dimension of size 1 is never crossed."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [(size, stride) for size, stride in pairs if size != 1]


def _operands(rule: Rule, target: Target) -> Iterator[tuple[str, Tensor]]:
    yield "grad", target.grad
    for name in rule.states:
        if name not in target.state:
            raise ValueError(f"{target.name}: its state has no {name}; found {list(target.state)}")
        yield name, target.state[name]
    if target.shadow is not None:
        yield "shadow", target.shadow
    if target.average is not None:
        yield "average", target.average


def _check_param(family: Family, target: Target, device: torch.device) -> None:
    param = target.param
    if param.layout != torch.strided:
        raise _refusal(family, target, "param", f"layout is {param.layout}, it must be strided")
    if param.dtype not in STORED_DTYPES:
        raise _refusal(
            family, target, "param", f"dtype is {param.dtype}, kernels take {_names(STORED_DTYPES)}"
        )
    if param.device != device:
        raise _refusal(
            family, target, "param", f"device is {param.device}, the first is on {device}"
        )
    if param.numel() and not is_dense(param):
        raise _refusal(
            family,
            target,
            "param",
            f"strides {list(param.stride())} of shape {list(param.shape)} leave gaps or overlap",
        )


def _check_operand(family: Family, target: Target, role: str, tensor: Tensor) -> None:
    param = target.param
    _check_storage(family, target, role, tensor)
    if tensor.shape != param.shape:
        raise _refusal(
            family,
            target,
            role,
            f"shape is {list(tensor.shape)}, the parameter has {list(param.shape)}",
        )
    if param.numel() and not same_layout(tensor, param):
        raise _refusal(
            family,
            target,
            role,
            f"strides are {list(tensor.stride())}, the parameter has {list(param.stride())}",
        )


def _check_factor(family: Family, target: Target, role: str, tensor: Tensor) -> None:
    """A mean over the columns, over the rows, or, for a vector, over nothing."""
    _check_storage(family, target, role, tensor)
    shape = list(target.param.shape)
    if role in ("row_var", "col_var"):
        shape[-1 if role == "row_var" else -2] = 1
    if list(tensor.shape) != shape:
        raise _refusal(family, target, role, f"shape is {list(tensor.shape)}, it must be {shape}")
    if not tensor.is_contiguous():
        raise _refusal(
            family, target, role, f"strides are {list(tensor.stride())}, it must be contiguous"
        )


def _check_storage(family: Family, target: Target, role: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise _refusal(family, target, role, f"layout is {tensor.layout}, it must be strided")
    if tensor.dtype not in STORED_DTYPES:
        raise _refusal(
            family, target, role, f"dtype is {tensor.dtype}, kernels take {_names(STORED_DTYPES)}"
        )
    if tensor.device != target.param.device:
        where = f"device is {tensor.device}, the parameter is on {target.param.device}"
        raise _refusal(family, target, role, where)


def _check_counter(family: Family, target: Target, name: str) -> None:
    counter = target.state.get(name)
    if counter is None:
        if not family.optional_counters:
            raise _refusal(family, target, name, f"missing; found {list(target.state)}")
        return
    if counter.numel() != 1 or counter.dtype != torch.float32:
        raise _refusal(
            family,
            target,
            name,
            f"shape {list(counter.shape)} of {counter.dtype}, it must be one float32",
        )
    if counter.device != target.param.device:
        raise _refusal(
            family,
            target,
            name,
            f"device is {counter.device}, the parameter is on {target.param.device}",
        )


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _refusal(family: Family, target: Target, role: str, why: str) -> ValueError:
    what = target.name if role == "param" else f"{role} of {target.name}"
    return ValueError(f"{family.name} kernel cannot take {what}: {why}")

"""What stepgraph knows of the optimizers of `torch.optim`, each fact once.

A new optimizer is one entry of `FACTS`. The Triton kernels are listed in
`stepgraph_kernels.catalogue`, because that package imports nothing of stepgraph; a test compares
their names of state with these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import optim

FUSED_CPU_KERNELS = ("adam", "adamw", "sgd", "adagrad")
"""The names of the fused CPU kernels.

Torch has each as `torch._fused_{name}_`, and stepgraph has each in C++.
"""

Group = dict[str, Any]
"""A param group: its parameters and hyper-parameters by name."""


@dataclass(frozen=True)
class FusedCpuRule:
    """How a fused CPU kernel is called for an optimizer.

    Attributes:
        kernel: From a param group to the name of the kernel, one of `FUSED_CPU_KERNELS`.
        lists: The number of lists of state tensors in the signature of torch's kernel. Those that
            a param group does not use are passed empty.
        names: From a param group to the names of the state tensors that it uses, in that order.
        options: From a param group to the kernel's options, in the order of its signature.
        counts: Whether the state has a step counter, which is the kernel's last list.
    """

    kernel: Callable[[Group], str]
    lists: int
    names: Callable[[Group], tuple[str, ...]]
    options: Callable[[Group], dict[str, Any]]
    counts: bool = True


@dataclass(frozen=True)
class OptimizerFacts:
    """What is known of one class of optimizers. A subclass of it may do anything.

    Attributes:
        separable: Whether the update of a parameter depends on its own gradient, state and
            hyper-parameters only. Then the parameters may be updated at different times.
        fused_cpu: How a fused CPU kernel is called, or None if there is no such kernel.
    """

    separable: bool = True
    fused_cpu: FusedCpuRule | None = None


def _adam_kernel(group: Group) -> str:
    return "adamw" if group["decoupled_weight_decay"] else "adam"


def _adam_names(group: Group) -> tuple[str, ...]:
    averages = "exp_avg", "exp_avg_sq"
    return (*averages, "max_exp_avg_sq") if group["amsgrad"] else averages


def _adam_options(group: Group) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {
        "lr": group["lr"],
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "amsgrad": group["amsgrad"],
        "maximize": group["maximize"],
    }


def _sgd_names(group: Group) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] else ()


def _sgd_options(group: Group) -> dict[str, Any]:
    return {
        "weight_decay": group["weight_decay"],
        "momentum": group["momentum"],
        "lr": group["lr"],
        "dampening": group["dampening"],
        "nesterov": group["nesterov"],
        "maximize": group["maximize"],
        "is_first_step": False,
    }


def _adagrad_options(group: Group) -> dict[str, Any]:
    return {
        "lr": group["lr"],
        "lr_decay": group["lr_decay"],
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "maximize": group["maximize"],
    }


_ADAM = FusedCpuRule(_adam_kernel, 3, _adam_names, _adam_options)

FACTS: Mapping[type[optim.Optimizer], OptimizerFacts] = {
    optim.Adam: OptimizerFacts(fused_cpu=_ADAM),
    optim.AdamW: OptimizerFacts(fused_cpu=_ADAM),
    optim.SGD: OptimizerFacts(
        fused_cpu=FusedCpuRule(lambda _: "sgd", 1, _sgd_names, _sgd_options, counts=False)
    ),
    optim.Adagrad: OptimizerFacts(
        fused_cpu=FusedCpuRule(lambda _: "adagrad", 1, lambda _: ("sum",), _adagrad_options)
    ),
    optim.ASGD: OptimizerFacts(),
    optim.Adadelta: OptimizerFacts(),
    optim.Adafactor: OptimizerFacts(),
    optim.Adamax: OptimizerFacts(),
    optim.LBFGS: OptimizerFacts(separable=False),
    optim.NAdam: OptimizerFacts(),
    optim.RAdam: OptimizerFacts(),
    optim.RMSprop: OptimizerFacts(),
    optim.Rprop: OptimizerFacts(),
}
"""The facts of each class, those with a fused CPU kernel first."""

_UNKNOWN = OptimizerFacts(separable=False)


def facts_of(optimizer: optim.Optimizer) -> OptimizerFacts:
    """Return what is known of an optimizer; of a subclass of torch's, nothing.

    Example:
        >>> import torch
        >>> facts_of(optim.RMSprop([torch.zeros(2)]))
        OptimizerFacts(separable=True, fused_cpu=None)
    """
    return FACTS.get(type(optimizer), _UNKNOWN)


def with_fused_cpu_kernel() -> list[str]:
    """Return the names of the classes that a fused CPU kernel can update.

    Example:
        >>> with_fused_cpu_kernel()
        ['Adam', 'AdamW', 'SGD', 'Adagrad']
    """
    return [kind.__name__ for kind, facts in FACTS.items() if facts.fused_cpu is not None]

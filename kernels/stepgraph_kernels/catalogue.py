"""Every kernel there is: which optimizers it serves, and the options that make another kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from stepgraph_kernels.adafactor import ADAFACTOR, AdafactorUpdate
from stepgraph_kernels.adagrad import ADAGRAD
from stepgraph_kernels.adam import ADAM
from stepgraph_kernels.adamax import ADAMAX
from stepgraph_kernels.lamb import LAMB, Lamb
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.lion import LION, Lion
from stepgraph_kernels.muon import MUON, MuonUpdate
from stepgraph_kernels.nadam import NADAM
from stepgraph_kernels.radam import RADAM
from stepgraph_kernels.rmsprop import RMSPROP
from stepgraph_kernels.sgd import SGD
from stepgraph_kernels.spec import Family, Group, Scalar

FAMILIES: dict[type[Optimizer], Family] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: ADAM,
    torch.optim.AdamW: ADAM,
    torch.optim.NAdam: NADAM,
    torch.optim.RAdam: RADAM,
    torch.optim.RMSprop: RMSPROP,
    torch.optim.Adagrad: ADAGRAD,
    torch.optim.Adamax: ADAMAX,
    Lion: LION,
    Lamb: LAMB,
    torch.optim.Adafactor: ADAFACTOR,
    torch.optim.Muon: MUON,
}

Update = MultiTensorUpdate | MuonUpdate


_UPDATES: dict[str, type[Update]] = {MUON.name: MuonUpdate, ADAFACTOR.name: AdafactorUpdate}


def update_class(family: Family) -> type[Update]:
    """What runs a family: the two launches, unless it needs more than its own elements."""
    return _UPDATES.get(family.name, MultiTensorUpdate)


@dataclass(frozen=True)
class Variant:
    """One optimizer with one choice of its options.

    Attributes:
        name: For reports and test ids.
        optimizer: The class.
        options: What its constructor gets.
    """

    name: str
    optimizer: Callable[..., Optimizer]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The kernels of this optimizer."""
        return FAMILIES[self.optimizer]  # type: ignore[index]

    def group(self) -> Group:
        """A `param_group` as the constructor makes it."""
        made = self.optimizer([torch.zeros(2, 2)], **self.options)
        group = made.defaults | made.param_groups[0]  # Adagrad keeps its initial value apart
        return {name: value for name, value in group.items() if name != "params"}


_DECAY: dict[str, Scalar] = {"lr": 0.03, "weight_decay": 0.1}

# Muon, which takes matrices only, has tests of its own
VARIANTS = (
    Variant("sgd", torch.optim.SGD, _DECAY),
    Variant("sgd maximize", torch.optim.SGD, {"lr": 0.03, "maximize": True}),
    Variant("sgd momentum", torch.optim.SGD, _DECAY | {"momentum": 0.9, "dampening": 0.3}),
    Variant("sgd nesterov", torch.optim.SGD, _DECAY | {"momentum": 0.9, "nesterov": True}),
    Variant("adam", torch.optim.Adam, {"lr": 0.03}),
    Variant("adam l2", torch.optim.Adam, _DECAY | {"betas": (0.0, 0.95)}),
    Variant("adamw", torch.optim.AdamW, _DECAY),
    Variant("adamw amsgrad", torch.optim.AdamW, _DECAY | {"amsgrad": True, "maximize": True}),
    Variant("nadam", torch.optim.NAdam, _DECAY | {"maximize": True}),
    Variant("nadam decoupled", torch.optim.NAdam, _DECAY | {"decoupled_weight_decay": True}),
    Variant("radam", torch.optim.RAdam, _DECAY | {"maximize": True}),
    Variant("radam decoupled", torch.optim.RAdam, _DECAY | {"decoupled_weight_decay": True}),
    Variant("rmsprop", torch.optim.RMSprop, _DECAY | {"maximize": True}),
    Variant("rmsprop momentum", torch.optim.RMSprop, _DECAY | {"momentum": 0.9}),
    Variant("rmsprop centered", torch.optim.RMSprop, _DECAY | {"centered": True}),
    Variant(
        "rmsprop centered momentum",
        torch.optim.RMSprop,
        _DECAY | {"centered": True, "momentum": 0.9},
    ),
    Variant(
        "adagrad",
        torch.optim.Adagrad,
        _DECAY | {"lr_decay": 0.1, "initial_accumulator_value": 0.2, "maximize": True},
    ),
    Variant("adamax", torch.optim.Adamax, _DECAY | {"maximize": True}),
    Variant("lion", Lion, _DECAY | {"maximize": True}),
    Variant("lamb", Lamb, _DECAY | {"maximize": True}),
    # (with eps[0] None it would depend on the dtype, and a reference in float64 have another)
    Variant("adafactor", torch.optim.Adafactor, _DECAY | {"eps": (1e-8, 1e-3)}),
    Variant(
        "adafactor maximize",
        torch.optim.Adafactor,
        {"lr": 0.3, "beta2_decay": -0.5, "eps": (0.5, 2.0), "d": 1.5, "maximize": True},
    ),
)

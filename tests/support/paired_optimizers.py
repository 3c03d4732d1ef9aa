"""Two equal models with equal optimizers: one updated by what is tested, one by `step()`."""

import copy
import functools

import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW

from stepgraph.lowering.closeness import is_close

FITTING = [
    AdamW,
    functools.partial(AdamW, amsgrad=True, weight_decay=0.1),
    functools.partial(AdamW, maximize=True),
    functools.partial(AdamW, lr=torch.tensor(0.01, dtype=torch.float64)),
    Adam,
    functools.partial(Adam, weight_decay=0.1),
    functools.partial(SGD, momentum=0.9, nesterov=True),
    functools.partial(SGD, momentum=0.9, dampening=0.1, weight_decay=0.1),
    SGD,
    functools.partial(Adagrad, lr_decay=0.1),
]


class PairedOptimizers:
    """Two equal models: one is updated by a fused update, one by `step()`."""

    def __init__(self, make, dtype=torch.float32):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
        self.models = model, copy.deepcopy(model)
        self.mine, self.own = (_optimizer(make, m) for m in self.models)
        self.updates = 0

    def gradients(self):
        """Give both the same gradients."""
        torch.manual_seed(self.updates)
        self.updates += 1
        for ours, theirs in zip(*(m.parameters() for m in self.models), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()

    def step(self, update):
        self.gradients()
        update()
        self.own.step()

    def close(self):
        ours, theirs = self.mine.state_dict(), self.own.state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for index, state in ours["state"].items():
            assert state.keys() == theirs["state"][index].keys()
            assert all(_agree(v, theirs["state"][index][k]) for k, v in state.items())
        pairs = zip(*(m.parameters() for m in self.models), strict=True)
        assert all(is_close(a.detach(), b.detach()) for a, b in pairs)


def _agree(a, b):
    return is_close(a, b) if isinstance(a, torch.Tensor) else a == b


def _optimizer(make, model):
    groups = [
        {"params": model[0].parameters(), "lr": 0.02},
        {"params": model[2].parameters()},
    ]
    return make(groups) if "lr" in getattr(make, "keywords", {}) else make(groups, lr=0.01)

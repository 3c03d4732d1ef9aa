"""Runs a step graph, flat or partitioned, on real tensors; effects in plain Python.

Nothing here knows resources or dependencies: gradients live in a dict, as `.grad` does, and an
update looks there and not at its arguments. A wrong order shows in the results.
"""

import torch
from torch.fx import GraphModule, Interpreter

from stepgraph.effects import effect_of


class World:
    """Everything a step can change: the inputs by slot, gradients, learning rates, the log."""

    def __init__(self, flat: GraphModule, inputs: dict[str, torch.Tensor]):
        self.tensors = {name: t.detach().clone() for name, t in inputs.items()}
        self.grads = {
            name.removeprefix("grad:"): t
            for name, t in self.tensors.items()
            if name.startswith("grad:")
        }
        self.lr, self.momentum, self.seen, self.flags = {}, {}, [], {}
        self.outputs = ()

    def name(self, tensor):
        """Return which slot's tensor, or a view of it, `tensor` is."""
        memory = tensor.untyped_storage().data_ptr()
        for slot, own in self.tensors.items():
            if slot.startswith("param:") and own.untyped_storage().data_ptr() == memory:
                return slot.removeprefix("param:")
        raise AssertionError("no parameter")

    def facts(self):
        """Return all that can be compared, as one flat list of tensors and other values."""
        grads = [(name, self.grads.get(name)) for name in sorted(self.grads)]
        return [
            *self.tensors.values(),
            *(value for pair in grads for value in pair),
            *(value for pair in sorted(self.lr.items()) for value in pair),
            *(value for _, value in sorted(self.momentum.items())),
            *self.seen,
            *sorted(self.flags.items()),
            *self.outputs,
            torch.get_rng_state(),
        ]


class Runner(Interpreter):
    """Executes a graph node by node in the order it has."""

    def __init__(self, module, world):
        super().__init__(module)
        self.world = world

    def call_function(self, target, args, kwargs):
        effect = effect_of(target)
        if effect is None:
            return super().call_function(target, args, kwargs)
        return getattr(self, effect.name)(*args, **kwargs)

    def first_grad(self, param, value):
        return value.clone()

    def add_grad_(self, grad, value):
        grad.add_(value)

    def set_grad(self, param, grad):
        self.world.grads[self.world.name(param)] = grad

    def zero_grad(self, params, subject):
        for param in params:
            self.world.grads[self.world.name(param)] = None

    def step(self, params, grads, subject):
        for param in params:
            name = self.world.name(param)
            grad = self.world.grads.get(name)
            if grad is not None:
                old = self.world.momentum.get((subject, name), torch.zeros_like(grad))
                new = self.world.momentum[subject, name] = 0.5 * old + grad
                param.sub_(self.world.lr.get(subject, 0.1) * new)

    def step_part(self, params, grads, subject, places, last):
        self.step(params, grads, subject)

    def lr_step(self, metric, subject):
        factor = 0.5 if metric is None else float(metric.sum()) + 1.25
        self.world.lr[subject] = self.world.lr.get(subject, 0.1) * factor

    def set_hyper(self, value, subject, group, key):
        self.world.lr[subject] = float(value.sum())

    def hyper(self, subject, group, key):
        return torch.tensor(self.world.lr.get(subject, 0.1), dtype=torch.float64)

    def log(self, value, subject, as_number):
        self.world.seen.append(value.clone())

    def ema(self, averages, params, buffers, subject):
        for average, param in zip(averages, params, strict=True):
            average.mul_(0.9).add_(param)

    def toggle(self, tensor, flag):
        self.world.flags[self.world.name(tensor)] = flag


def run(module, flat, inputs):
    """Run `module` on copies of `inputs`; return everything it did."""
    world = World(flat, inputs)
    torch.manual_seed(7)
    world.outputs = Runner(module, world).run(*world.tensors.values())
    return world.facts()


def same(left, right):
    """Return whether two runs did the same, bit for bit (nan equals nan)."""
    return len(left) == len(right) and all(map(_equal, left, right))


def _equal(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0))
    return type(a) is type(b) and a == b

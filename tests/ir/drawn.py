"""Hypothesis strategies that draw flat step graphs.

A drawn step is a list of statements over a few parameters, a buffer and the batch. They read and
write in place, through views and lists, draw random numbers, store gradients and run effects, in
any order: nothing a training loop would do, and everything it might.
"""

import torch
from hypothesis import strategies as st

from stepgraph.ir import Kind
from stepgraph.ir import build as b

COMPUTE = ["compute", "compute", "view", "dropout", "batch_norm", "statistics"]
WRITE = ["write", "write_piece", "write_slot", "foreach", "split"]
GRADIENTS = ["store", "store", "add", "add", "alias", "clear", "drop"]
EFFECTS = [
    "step",
    "step",
    "step_all",
    "step_all",
    "set_lr",
    "lr_step",
    "lr",
    "log",
    "toggle",
    "ema",
]
STATEMENTS = [*COMPUTE, *WRITE, *GRADIENTS, *EFFECTS]
KINDS = [Kind.FORWARD, Kind.BACKWARD, Kind.CLIP]


@st.composite
def flat_graphs(draw, max_statements=14, opaque=None):
    """A flat graph and inputs to run it on: `(flat, inputs)`."""
    statements = draw(
        st.lists(
            st.tuples(
                st.sampled_from(STATEMENTS),
                st.sampled_from(KINDS),
                st.integers(0, 9),
                st.integers(0, 9),
            ),
            min_size=1,
            max_size=max_statements,
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    names = ["batch:x", "param:w", "param:v", "buffer:mean", "grad:v", "buffer:average"]
    inputs = {name: torch.randn(2, 2, generator=generator) for name in names}
    flat = b.flat_graph(_Function(statements), inputs)
    barrier = draw(st.booleans()) if opaque is None else opaque
    return (flat if barrier else b.transparent(flat)), inputs


class _Function:
    """Interprets drawn statements on tensors; traced, it gives the flat graph."""

    def __init__(self, statements):
        self.statements = statements

    def __call__(self, x, w, v, mean, grad_v, average):
        self.pool = [x, w, v, mean]
        self.params, self.mean, self.average = [w, v], mean, average
        self.grads = {1: grad_v}
        with torch.no_grad():
            for name, kind, i, j in self.statements:
                with b.part(kind):
                    getattr(self, name)(self.take(i), self.take(j), i % 2)
        return [value + 0 for value in self.pool[4:]]

    def take(self, i):
        return self.pool[i % len(self.pool)]

    def keep(self, value):
        self.pool.append(value)

    def compute(self, left, right, which):
        self.keep(torch.tanh(left @ right) if which else left * 0.5 - right)

    def view(self, left, right, which):
        self.keep(left.t() if which else left.unsqueeze(0).select(0, 0))

    def write(self, left, right, which):
        target = self.pool[-1] if which else left
        target.mul_(0.5) if target is self.pool[0] else target.add_(right.sum())

    def write_piece(self, left, right, which):
        left[which].copy_(right[0].clone())

    def write_slot(self, left, right, which):
        self.params[which].add_(left.clone(), alpha=0.25)

    def foreach(self, left, right, which):
        torch._foreach_mul_([left, self.mean], 0.75)

    def split(self, left, right, which):
        left.split(1)[which].neg_()

    def dropout(self, left, right, which):
        self.keep(torch.nn.functional.dropout(left, 0.5))

    def batch_norm(self, left, right, which):
        running = self.mean[0], self.average[0]
        result = torch.ops.aten.native_batch_norm(
            left, None, None, *running, bool(which), 0.1, 1e-5
        )
        self.keep(result[0])

    def statistics(self, left, right, which):
        values, _ = left.max(0)
        values.add_(1)
        self.keep(left + values)

    def store(self, left, right, which):
        self.grads[which] = b.store(self.params[which], left)

    def alias(self, left, right, which):
        self.grads[which] = value = left * 1
        self.keep(value)
        b.OPS.set_grad.default(self.params[which], value)

    def add(self, left, right, which):
        if (grad := self.grads.get(which)) is not None:
            b.add(grad, left.clone())

    def clear(self, left, right, which):
        b.clear(self.params)
        self.grads.clear()

    def drop(self, left, right, which):
        b.OPS.set_grad.default(self.params[which], None)
        self.grads.pop(which, None)

    def step(self, left, right, which):
        subject = 0 if left is self.pool[0] else 2
        grads = [self.grads[which]] if which in self.grads else []
        b.step([self.params[which]], grads, subject)

    def step_all(self, left, right, which):
        b.step(self.params, [self.grads[i] for i in sorted(self.grads)], which * 2)

    def set_lr(self, left, right, which):
        b.set_lr(left.mean(), subject=which * 2)

    def lr_step(self, left, right, which):
        b.OPS.lr_step.default(left.clone() if which else None, 0)

    def lr(self, left, right, which):
        self.keep(left * b.lr(subject=which * 2).float())

    def log(self, left, right, which):
        b.log(left)

    def toggle(self, left, right, which):
        b.OPS.toggle.default(self.params[which], left is right)

    def ema(self, left, right, which):
        b.OPS.ema.default([self.average], [self.params[which]], [], 3)

"""Hypothesis strategies that draw training steps as a user would write them.

A drawn program is Python source of a function `make` that builds models, optimizers, schedules and
a `step(x, y, labels, index)`. It consists of halves, one for each optimizer - forward, backward,
clip, step, schedule in some order - and of lines that a training loop carries beside them. Nearly
all of these run without an error in eager PyTorch; the few that do not must fail alike compiled.

Everything is decided by one function `choose(options)`. Hypothesis supplies one that it can
shrink, towards the first option; `random.Random(seed).choice` gives the same programs from a seed.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as in the programs
from torch.utils.checkpoint import checkpoint

Choose = Callable[[Sequence[Any]], Any]
Lines = list[str]


@dataclasses.dataclass(frozen=True, repr=False)
class DrawnStep:
    """A drawn program: its source, and the call that gets a shorter batch, if any."""

    source: str
    short_call: int | None

    def __repr__(self) -> str:
        return f"a short batch in call {self.short_call}\n\n{self.source}"


@st.composite
def training_steps(draw):
    """A `DrawnStep`, which shrinks towards few and plain lines."""
    return drawn(lambda options: draw(st.sampled_from(options)))


def training_step(seed: int) -> DrawnStep:
    """The `DrawnStep` of a seed, the same on every machine."""
    return drawn(random.Random(seed).choice)


# --- models: each maps [n, 4] to [n, 4]


class Tied(nn.Module):
    """One weight under two names, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Attention(nn.Module):
    """Attention among the samples of a batch."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(0).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v)).squeeze(0)


class Lookup(nn.Module):
    """An embedding looked up by the largest feature."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(4, 3), nn.Linear(3, 4)

    def forward(self, x):
        return self.out(self.table(x.argmax(1)))


class Remembering(nn.Module):
    """Buffers written in place: a queue of means, a count, a running mean."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("queue", torch.zeros(3, 4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        out = self.linear(x - self.mean)
        if self.training:
            with torch.no_grad():
                self.queue.copy_(self.queue.roll(1, 0))
                self.queue[0] = out.mean(0)
                self.mean.lerp_(x.mean(0), 0.1)
                self.count += 1
        return out + self.queue.mean(0)


class Checkpointed(nn.Module):
    """A layer whose activations are computed again in the backward."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(checkpoint(self._inner, x, use_reentrant=False))

    def _inner(self, x):
        return torch.tanh(self.first(x))


class HalfUsed(nn.Module):
    """A parameter without a gradient, beside a frozen one."""

    def __init__(self):
        super().__init__()
        self.linear, self.unused = nn.Linear(4, 4), nn.Parameter(torch.ones(3))
        self.linear.bias.requires_grad_(False)

    def forward(self, x):
        return self.linear(x)


MODULES = [Tied, Attention, Lookup, Remembering, Checkpointed, HalfUsed]

NETS = [
    "nn.Linear(4, 4)",
    "nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))",
    "nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))",
    "nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.GELU(), nn.Linear(5, 4))",
    "nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4, bias=False))",
    "nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1), nn.Flatten(), "
    "nn.Linear(8, 4))",
    "nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))",
    "Tied()",
    "Attention()",
    "Lookup()",
    "Remembering()",
    "Checkpointed()",
    "HalfUsed()",
]

OPTIMIZERS = [
    "SGD({params}, lr=0.1)",
    "SGD({params}, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)",
    "Adam({params}, lr=0.01)",
    "Adam({params}, lr=torch.tensor(0.01), foreach=False, capturable=False)",
    "Adam({params}, lr=0.01, amsgrad=True, foreach=True)",
    "AdamW({params}, lr=0.01, fused=True)",
    "AdamW({params}, lr=0.01, weight_decay=0.1, foreach=False)",
    "RMSprop({params}, lr=0.01, momentum=0.5, centered=True)",
    "Adagrad({params}, lr=0.1, lr_decay=0.1)",
    "Adadelta({params})",
    "Adamax({params}, lr=0.01)",
    "NAdam({params}, lr=0.01)",
    "RAdam({params}, lr=0.01)",
    "Rprop({params}, lr=0.01)",
    "ASGD({params}, lr=0.1)",
]

PARAMS = [
    "net{k}.parameters()",
    '[{{"params": [p]}} for p in net{k}.parameters()]',
    '[{{"params": list(net{k}.parameters())[:1], "lr": 0.05}}, '
    '{{"params": list(net{k}.parameters())[1:]}}]',
    "[p for net in nets for p in net.parameters()]",
]

SCHEDULERS = [
    "StepLR({opt}, 2)",
    "ExponentialLR({opt}, 0.9)",
    "LambdaLR({opt}, lambda epoch: 1 / (1 + epoch))",
    "CosineAnnealingLR({opt}, 5)",
    "OneCycleLR({opt}, 0.1, total_steps=30, cycle_momentum=False)",
    "CosineAnnealingWarmRestarts({opt}, 3)",
    "LinearLR({opt}, total_iters=4)",
]

FORWARDS = [
    "net{k}(x)",
    "net{k}(x + 0.1 * torch.randn_like(x))",
    "net{k}(net{j}(x))",
    "net{k}(net{j}(x).detach())",
    "net{k}(x) + net{j}(x)",
    "net{k}(net{k}(x))",
    "net{k}(x * torch.distributions.Bernoulli(logits=y).sample())",
    "net{k}(torch.where(x > 0, x, y))",
]

LOSSES = [
    "F.mse_loss({out}, y)",
    "F.cross_entropy({out}, labels)",
    "({out} * y).mean()",
    "F.binary_cross_entropy_with_logits({out}, torch.ones_like({out}))",
    "F.mse_loss({out}, y) + 0.01 * sum(p.square().sum() for p in net{k}.parameters())",
    "F.mse_loss({out}, y) / (index + 1)",
    "F.smooth_l1_loss({out}, y, reduction='none').sum(1).max()",
    "F.mse_loss({out}, y) + (torch.autograd.grad({out}.sum(), [net{k}.get_parameter("
    "next(iter(dict(net{k}.named_parameters()))))], create_graph=True)[0].norm() - 1) ** 2",
]

BACKWARDS = [
    "{loss}.backward()",
    "({loss} / 3).backward()",
    "{loss}.backward(retain_graph=True)\n{loss}.backward()",
    "{loss}.backward(retain_graph=True)\n{out}.square().mean().backward()",
    "{loss}.backward(inputs=[p for p in net{k}.parameters() if p.requires_grad])",
    "{loss}.backward(gradient=torch.full((), 2.0))",
    "for p, g in zip(net{k}.parameters(), torch.autograd.grad({loss}, [p for p in "
    "net{k}.parameters()], allow_unused=True)):\n    p.grad = g",
]

CLIPS = [
    "norm = nn.utils.clip_grad_norm_(net{k}.parameters(), 0.5)",
    "nn.utils.clip_grad_value_(net{k}.parameters(), 0.01)",
    "norm = nn.utils.clip_grad_norm_(net{k}.parameters(), 1.0, norm_type=float('inf'))",
    "norm = nn.utils.get_total_norm([p.grad for p in net{k}.parameters() if p.grad is not None])",
    "for p in net{k}.parameters():\n    if p.grad is not None:\n        p.grad.mul_(0.5)",
    "for p in net{k}.parameters():\n    if p.grad is not None:\n"
    "        p.grad += 0.01 * torch.randn_like(p.grad)",
]

AFTER_STEP = [
    "with torch.no_grad():\n    for p in net{k}.parameters():\n        p.clamp_(-0.5, 0.5)",
    "with torch.no_grad():\n    for a, p in zip(average{k}, net{k}.parameters()):\n"
    "        a.lerp_(p, 0.1)",
    "averaged{k}.update_parameters(net{k})",
    "for p in net{k}.parameters():\n    p.data.mul_(0.99)",
]

ZEROS = [
    "opt{k}.zero_grad()",
    "opt{k}.zero_grad(set_to_none=False)",
    "net{k}.zero_grad()",
    "for p in net{k}.parameters():\n    p.grad = None",
]

ANYWHERE = [
    "opt{k}.param_groups[0]['lr'] = 0.1 / (index + 1)",
    "for group in opt{k}.param_groups:\n    group['weight_decay'] = 0.01",
    "average{k}[0].mul_(0.9)",
    "counts['calls'] += 1",
    "kept.append(index)",
    "x = x * torch.rand(())",
    "with torch.no_grad():\n    table['score'] = net{k}(x).mean()",
    "noise = torch.randn(3)",
    "table['noise'] = torch.rand(2)",
    "recent.append(x.mean())",
    "table['lr'] = opt{k}.param_groups[0]['lr']",
]

AT_THE_END = [
    "kept.append({loss}.detach())",
    "table['loss'] = {loss}.detach()",
    "recent.append({loss}.detach().clone())",
    "average{k}[0].add_({loss}.detach())",
    "net{k}.eval()\nwith torch.no_grad():\n    table['eval'] = net{k}(x)\nnet{k}.train()",
    "net{k}.last = {loss}.detach()",
    "with torch.no_grad():\n    for t, p in zip(net{j}.parameters(), net{k}.parameters()):\n"
    "        t.copy_(p) if t.shape == p.shape else t.mul_(0.9)",
]

# these are allowed to make the step run eagerly, so they are drawn seldom
HEAVY = [
    "kept.append({loss}.item())",
    "print(f'{{{loss}.detach().item():.4f}}')",
    "if {loss} > 1:\n    counts['calls'] += 10",
    "table['live'] = net{k}(x).mean()",
    "torch.autograd.backward([net{k}(x).mean(), net{k}(y).mean()])",
]

RESULTS = [
    "None",
    "{loss}",
    "{loss}.detach()",
    "{{'loss': {loss}, 'index': index, 'nothing': None}}",
    "[{loss}.detach() * 2, (x, y.sum())]",
    "{out}.detach(), opt{k}.param_groups[0]['lr']",
    "counts['calls'], kept",
]


def drawn(choose: Choose) -> DrawnStep:
    """Draw one program."""
    return DrawnStep(Drawing(choose).source(), choose([None] * 5 + [3, 4]))


class Drawing:
    """One program while it is drawn."""

    def __init__(self, choose: Choose):
        self.choose = choose
        self.halves = choose([1, 1, 1, 2])
        self.shared = self.halves == 2 and choose([False, True])  # as in a GAN
        self.accumulate = choose([1] * 6 + [2, 3])
        self.schedules: dict[int, str] = {}

    def source(self) -> str:
        step = self._step()
        make = [*self._setup(), "", "def step(x, y, labels, index):", *indented(step), ""]
        make.append("return step, locals()")
        return "\n".join(["def make():", *indented(make)]) + "\n"

    def seldom(self, times: int = 4) -> bool:
        return self.choose([False] * (times - 1) + [True])

    def pick(self, options: Sequence[str], k: int, **names: str) -> Lines:
        """Lines of one of the templates, for half `k`."""
        other = self.halves - 1 - k
        return self.choose(options).format(k=k, j=other, **names).split("\n")

    # --- around the step

    def _setup(self) -> Lines:
        lines = []
        for k in range(self.halves):
            lines.append(f"net{k} = {self.choose(NETS)}")
        lines.append(f"nets = [{', '.join(f'net{k}' for k in range(self.halves))}]")
        for k in range(self.halves):
            # the optimizer of a half must not change what the other backpropagates through
            params = self.pick(PARAMS[:-1] if self.shared else PARAMS, k)[0]
            optimizer = self.choose(OPTIMIZERS).format(params=params)
            lines.append(f"opt{k} = torch.optim.{optimizer}")
            lines.append(f"average{k} = [p.detach().clone() for p in net{k}.parameters()]")
            lines.append(f"averaged{k} = torch.optim.swa_utils.AveragedModel(net{k})")
        for k, schedule in self.schedules.items():
            lines.append(f"sched{k} = torch.optim.lr_scheduler.{schedule.format(opt=f'opt{k}')}")
        return [*lines, "kept, table, counts, recent = [], {}, {'calls': 0}, deque(maxlen=2)"]

    def _step(self) -> Lines:
        lines = ["shared = net0(x)"] if self.shared else []
        order = [1, 0] if self.shared else range(self.halves)
        for k in order:
            lines += self._anywhere(k)
            lines += self._closure(k) if self.seldom(8) else self._half(k)
        k = order[-1]
        names = {"loss": f"loss{k}", "out": f"out{k}"}
        while self.seldom(3):
            lines += self.pick(AT_THE_END, k, **names)
        if self.seldom(10):
            lines += self.pick(HEAVY, k, **names)
        (result,) = self.pick(RESULTS, k, **names)
        return [*lines, f"return {result}"]

    def _anywhere(self, k: int) -> Lines:
        lines = []
        while self.seldom(3):
            lines += self.pick(ANYWHERE, k)
        return lines

    # --- one half

    def _half(self, k: int) -> Lines:
        toggled = self.halves == 2 and self.seldom(3)
        forward, backward = self._forward(k), self._backward(k)
        update, where = self._update(k), self.choose(["first", "before backward", "last", "never"])
        zero = self.pick(ZEROS, k)
        if where == "last":
            update += zero
        elif where != "never" and self.accumulate > 1:
            zero = [f"if index % {self.accumulate} == 0:", *indented(zero)]
        if self.accumulate > 1:
            update = [f"if (index + 1) % {self.accumulate} == 0:", *indented(update)]
        if where == "first":
            forward = zero + forward
        elif where == "before backward":
            forward = forward + zero
        lines = [*forward, *self._anywhere(k), *backward, *update]
        return self._toggled(lines, 1 - k) if toggled else lines

    def _toggled(self, lines: Lines, other: int) -> Lines:
        off, on = self.choose(
            [
                (f"net{other}.requires_grad_(False)", f"net{other}.requires_grad_(True)"),
                (
                    f"for p in net{other}.parameters():\n    p.requires_grad = False",
                    f"for p in net{other}.parameters():\n    p.requires_grad = True",
                ),
            ]
        )
        return [*off.split("\n"), *lines, *on.split("\n")]

    def _forward(self, k: int) -> Lines:
        if self.shared:
            lines = [f"out{k} = net1(shared{'.detach()' if k else ''})"]
        else:
            lines = [f"out{k} = {self.pick(FORWARDS, k)[0]}"]
        lines += [f"loss{k} = {self.pick(LOSSES, k, out=f'out{k}')[0]}"]
        if self.seldom(6):
            lines = ["with torch.autocast('cpu', torch.bfloat16):", *indented(lines)]
        return lines

    def _backward(self, k: int) -> Lines:
        return self.pick(BACKWARDS, k, loss=f"loss{k}", out=f"out{k}")

    def _update(self, k: int) -> Lines:
        lines = self.pick(CLIPS, k) if self.seldom(3) else []
        lines.append(f"opt{k}.step()")
        if self.seldom(3):
            lines += self._schedule(k)
        while self.seldom(4):
            lines += self.pick(AFTER_STEP, k)
        return lines

    def _schedule(self, k: int) -> Lines:
        self.schedules[k] = self.choose(SCHEDULERS)
        return [f"sched{k}.step()"]

    def _closure(self, k: int) -> Lines:
        inner = [
            *self.pick(ZEROS, k),
            *self._forward(k),
            *self.pick(BACKWARDS[:2], k, loss=f"loss{k}"),
            f"return loss{k}",
        ]
        lines = ["def closure():", *indented(inner), "", f"loss{k} = opt{k}.step(closure)"]
        lines += [f"out{k} = net{k}(x).detach()"]
        return [*lines, *(self._schedule(k) if self.seldom(3) else [])]


def indented(lines: Lines) -> Lines:
    """Lines one level deeper."""
    return ["    " + line if line else line for line in lines]

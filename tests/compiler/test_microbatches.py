"""microbatches=n: one call of a plain step does what a loop over the split batch does."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as in the drawn programs

import stepgraph
from stepgraph import Microbatches
from stepgraph.analysis import peak
from stepgraph.compiler.compile import with_backend
from stepgraph.ir import Kind, flatten
from support import strategies
from support.harness import Program, assert_captured, draw, regression, same_as_eager
from support.split_by_hand import PAIRS, World, beside, parts_of, plain_with_closure, sized


@pytest.mark.parametrize("name", ["clearing last", "with a closure"])
def test_a_split_call_is_the_loop_written_by_hand(name):
    step = same_as_eager(
        beside(PAIRS[name], lambda: World(3)), calls=4, decorated=True, microbatches=3
    )

    assert_captured(step)
    assert step.explain().captures == 1


def test_the_parts_are_in_one_graph_with_one_update():
    step = same_as_eager(
        beside(PAIRS["clearing first"], lambda: World(3)), calls=4, decorated=True, microbatches=3
    )

    assert_captured(step)
    (graph,) = step.graphs
    count = graph.count()
    assert count[Kind.BACKWARD] == 3
    assert count[Kind.FORWARD] == 4  # the last one puts the losses together
    assert count[Kind.STEP] == count[Kind.CLIP] == count[Kind.EMA] == count[Kind.ZERO_GRAD] == 1
    assert "split into 3 parts" in str(step.explain())
    assert step.explain().variants[0].parts == 3


def test_parts_of_different_sizes_are_weighted_by_their_samples():
    # 6, 7 and 2 samples split four ways: 2 + 2 + 1 + 1, 2 + 2 + 2 + 1, and 1 + 1
    step = same_as_eager(
        beside(PAIRS["with a closure"], lambda: World(4), sized(6, 7, 2)),
        calls=9,
        decorated=True,
        microbatches=4,
    )

    assert_captured(step)
    assert step.explain().captures == 3


def test_batches_of_other_sizes_that_split_evenly_need_one_more_capture():
    world = World(2)
    step = stepgraph.compile(
        lambda x, y: plain_with_closure(world, x, y), microbatches=2, on_fallback="error"
    )
    batch = sized(8, 8, 4, 8, 4, 6, 12)

    for index in range(7):
        step(*batch(index))

    assert step.explain().captures == 2


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_activations_of_one_part_are_alive_at_a_time(backend):
    def peak_bytes(parts):
        net = nn.Sequential(*[layer for _ in range(2) for layer in (nn.Linear(4, 4), nn.Tanh())])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        @stepgraph.compile(microbatches=parts, backend=backend)
        def step(x):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        for index in range(2):
            step(draw(1024, 4, seed=index))
        (variant,) = step._variants
        assert backend == "eager" or all(
            r.refusal is None for r in variant.rewritten.lowered.regions
        )
        return peak(flatten(step.graphs[0]).graph).bytes, variant.rewritten.lowered

    whole, _ = peak_bytes(1)
    split, lowered = peak_bytes(4)

    assert whole > 3.5 * split
    if backend == "inductor":  # no region spans two parts
        assert all(region.refusal is None for region in lowered.regions)
        assert len([region for region in lowered.regions if region.operators > 8]) == 4


def test_a_step_that_is_compiled_anew_for_another_backend_is_split_once():
    world = World(2)
    step = stepgraph.compile(
        lambda x, y: plain_with_closure(world, x, y), microbatches=2, on_fallback="error"
    )

    again = with_backend(step, "eager")
    for index in range(2):
        again(*sized(8, 8)(index))

    (variant,) = again.explain().variants
    assert variant.parts == 2
    assert variant.nodes["backward"] == 2


def test_splitting_goes_with_accumulation_and_a_short_window():
    step = same_as_eager(
        beside(PAIRS["clearing first"], lambda: World(2, window=2), sized(5)),
        calls=6,
        decorated=True,
        microbatches=2,
        accumulate=2,
    )

    assert_captured(step)
    assert step.state_dict() == {"position": 0, "accumulate": 2}


def test_a_short_window_of_split_calls_is_flushed():
    def weights(sizes, flush):
        torch.manual_seed(0)
        world = World(2)
        world.net = world.net.double()
        step = stepgraph.compile(
            lambda x, y: plain_with_closure(world, x, y), microbatches=2, accumulate=len(sizes)
        )
        for size in sizes if not flush else sizes[:2]:
            step(draw(size, 4).double(), draw(size, 2).double())
        assert step.flush() is flush
        return list(world.net.parameters())

    # n/m times a sum of 1/n parts rounds a few times more than a sum of 1/m parts
    torch.testing.assert_close(weights([4, 4, 4], True), weights([4, 4], False))


class Mixed(World):
    """Two networks and two optimizers on one loss; a precision of choice."""

    def __init__(self, parts, dtype):
        super().__init__(parts)
        self.head = nn.Linear(2, 2)
        self.other = torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9)
        self.dtype = dtype
        del self.scaler
        self.own = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)

    def loss(self, x, y):
        return F.mse_loss(self.head(self.net(x)).float(), y)

    def watched(self):
        return {k: v for k, v in super().watched().items() if k != "own"}


def plain_mixed(world, x, y):
    world.optimizer.zero_grad()
    world.other.zero_grad()
    loss = world.loss(x, y)
    loss.backward()
    world.optimizer.step()
    world.other.step()
    return loss


def mixed_by_hand(world, x, y):
    mean = 0
    pairs = (world.net, world.optimizer), (world.head, world.other)
    world.optimizer.zero_grad()
    world.other.zero_grad()
    for part in parts_of(world, x, y):
        with torch.autocast("cpu", dtype=world.dtype):
            loss = world.loss(*part.tensors)
        part.of(world.own.scale(loss)).backward()
        mean += part.of(loss.detach(), window=1)
    for net, optimizer in pairs:
        world.own.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        world.own.step(optimizer)
    world.own.update()
    return mean


def overflowing(index):
    x, y = regression(index)
    return (x * 1e30 if index == 3 else x), y


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_splitting_goes_with_precision_and_clipping(precision, dtype):
    step = same_as_eager(
        beside((plain_mixed, mixed_by_hand), lambda: Mixed(3, dtype), overflowing),
        calls=6,
        decorated=True,
        microbatches=3,
        precision=precision,
        clip_norm=0.05,
    )

    assert_captured(step)
    casts = [
        node.args[0]
        for node in flatten(step.graphs[0]).graph.nodes
        if node.target is torch.ops.aten._to_copy.default
        and node.kwargs.get("dtype") is dtype
        and node.args[0].op == "placeholder"
    ]
    assert len(casts) == len(set(casts)) == 6  # a weight once for all parts


class Halving(torch.optim.Optimizer):
    """An optimizer of one's own, which may not be stepped twice to see what it does."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=-self.param_groups[0]["lr"])
        self.param_groups[0]["lr"] /= 2


def test_an_optimizer_of_ones_own_is_stepped_once_on_clipped_gradients():
    def plain(world, x, y):
        world.optimizer.zero_grad()
        loss = world.loss(x, y)
        loss.backward()
        world.optimizer.step()
        return loss

    def by_hand(world, x, y):
        mean = 0
        world.optimizer.zero_grad()
        for part in parts_of(world, x, y):
            loss = world.loss(*part.tensors)
            part.of(loss).backward()
            mean += part.of(loss.detach(), window=1)
        nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
        world.optimizer.step()
        return mean

    class Own(World):
        def __init__(self):
            super().__init__(2)
            del self.scheduler
            self.optimizer = Halving(self.net.parameters())

    step = same_as_eager(
        beside((plain, by_hand), Own), calls=4, decorated=True, microbatches=2, clip_norm=0.1
    )

    assert_captured(step)


def test_randomness_and_batch_statistics_pass_where_they_are_allowed():
    class Noisy(World):
        def __init__(self, parts):
            super().__init__(parts)
            self.net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    split = Microbatches(2, allow_batch_statistics=True, allow_randomness=True)

    step = same_as_eager(
        beside(PAIRS["with a closure"], lambda: Noisy(2)),
        calls=4,
        decorated=True,
        microbatches=split,
    )

    assert_captured(step)


def test_verification_and_dropped_gradients_go_with_splitting():
    step = same_as_eager(
        beside(PAIRS["with a closure"], lambda: World(2)),
        calls=5,
        decorated=True,
        microbatches=2,
        verify=2,
        keep_grads=False,
    )

    assert_captured(step)


def test_a_fallback_keeps_the_split(monkeypatch):
    # the limit lets one variant in; other sizes are eager, on the terms of their parts
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "1")

    step = same_as_eager(
        beside(PAIRS["with a closure"], lambda: World(3), sized(6, 6, 4)),
        calls=6,
        decorated=True,
        microbatches=3,
    )

    assert "no variant" in step.explain().fallback_reason


def test_switched_off_it_still_splits(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_DISABLE", "1")

    step = same_as_eager(
        beside(PAIRS["clearing last"], lambda: World(3)), calls=3, decorated=True, microbatches=3
    )

    assert step.explain().captures == 0


def looking_up(decorate):
    """A table that raises in the third part of some batches, when two have been added up."""
    table = nn.Embedding(4, 2)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.1)

    def step(x):
        optimizer.zero_grad()
        loss = table(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    def by_hand(x):
        optimizer.zero_grad()
        mean = 0
        for part in x.split(2):
            loss = table(part).square().mean()
            (loss / 3).backward()
            mean += loss.detach() / 3
        optimizer.step()
        return mean

    def batch(index):
        return (torch.tensor([0, 1, 2, 3, 1, 9 if index in (2, 4, 5) else 0]),)

    compiled = decorate(step)
    return Program(by_hand if compiled is step else compiled, batch, watch=[table, optimizer])


def test_an_error_in_the_third_part_leaves_what_two_have_added_up():
    step = same_as_eager(looking_up, calls=8, decorated=True, microbatches=3)

    assert_captured(step)
    assert step.explain().replays == 3


# --- drawn steps


@dataclasses.dataclass
class Drawn:
    """A drawn training step, and the loop it is compared with."""

    net: str
    optimizer: str
    schedule: str | None
    clip: dict[str, float]
    by_option: bool
    parts: int
    size: int
    scaled: bool

    def make(self, decorate: Any) -> Program:
        names = {**vars(strategies), "nn": nn, "torch": torch}
        world = World(self.parts)
        world.net = eval(self.net, names)
        optimizer = self.optimizer.format(params="net.parameters()")
        world.optimizer = eval(f"torch.optim.{optimizer}", names | {"net": world.net})
        del world.average
        schedule = (self.schedule or "StepLR({opt}, 1, 1.0)").format(opt="opt")
        module = vars(torch.optim.lr_scheduler)
        world.scheduler = eval(schedule, module | {"opt": world.optimizer})
        compiled = decorate(lambda x, y: self.plain(world, x, y))
        is_plain = not isinstance(compiled, stepgraph.CompiledStep)
        step = (lambda x, y: self.by_hand(world, x, y)) if is_plain else compiled

        def batch(index):
            return draw(self.size, 4, seed=index), draw(self.size, 4, seed=-index - 1)

        return Program(step, batch, watch=world.watched())

    def plain(self, world, x, y):
        world.optimizer.zero_grad()
        loss = world.loss(x, y)
        (world.scaler.scale(loss) if self.scaled else loss).backward()
        self.update(world, by_hand=False)
        return loss

    def by_hand(self, world, x, y):
        world.optimizer.zero_grad()
        mean = 0
        for part in parts_of(world, x, y):
            loss = world.loss(*part.tensors)
            part.of(world.scaler.scale(loss) if self.scaled else loss).backward()
            mean += part.of(loss.detach(), window=1)
        self.update(world, by_hand=True)
        return mean

    def update(self, world, *, by_hand):
        if self.scaled:
            world.scaler.unscale_(world.optimizer)
        if by_hand or not self.by_option:
            if "clip_norm" in self.clip:
                nn.utils.clip_grad_norm_(world.net.parameters(), self.clip["clip_norm"])
            if "clip_value" in self.clip:
                nn.utils.clip_grad_value_(world.net.parameters(), self.clip["clip_value"])
        if self.scaled:
            world.scaler.step(world.optimizer)
            world.scaler.update()
        else:
            world.optimizer.step()
        world.scheduler.step()


@st.composite
def drawn_steps(draw_one):
    scaled = draw_one(st.booleans())
    clip = draw_one(st.sampled_from([{}, {"clip_norm": 0.1}, {"clip_value": 0.01}]))
    return Drawn(
        net=draw_one(st.sampled_from(strategies.NETS)),
        optimizer=draw_one(st.sampled_from(strategies.OPTIMIZERS)),
        schedule=draw_one(st.sampled_from([None, *strategies.SCHEDULERS])),
        clip=clip,
        by_option=not scaled and draw_one(st.booleans()),
        parts=draw_one(st.integers(2, 4)),
        size=draw_one(st.integers(4, 9)),
        scaled=scaled,
    )


@pytest.mark.timeout(600)  # a failure is shrunk before it is shown
@settings(max_examples=settings.default.max_examples // 6)
@given(drawn_steps())
def test_a_drawn_step_is_the_same_split_as_by_hand(drawn):
    allowed = Microbatches(drawn.parts, allow_batch_statistics=True, allow_randomness=True)

    step = same_as_eager(
        drawn.make,
        calls=3,
        decorated=True,
        microbatches=allowed,
        **(drawn.clip if drawn.by_option else {}),
    )

    assert step.explain().fallback_reason is None, step.explain().fallback_reason

"""The options of compile: clipping, precision, verify, passes - each beside a step by hand."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from stepgraph.errors import ConfigurationError, VerificationError
from stepgraph.ir import StepGraph, flatten, partition
from stepgraph.passes import DEFAULT, Pass, Pipeline
from support.harness import Program, assert_captured, mlp, regression, same_as_eager


class World:
    """Two linear layers trained by two optimizers on one loss."""

    def __init__(self):
        self.body, self.head = mlp(outputs=3), nn.Linear(3, 2)
        self.one = torch.optim.AdamW(self.body.parameters(), lr=0.01)
        self.two = torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9)

    def loss(self, x, y):
        return functional.mse_loss(self.head(self.body(x)), y)

    def clear(self):
        self.one.zero_grad()
        self.two.zero_grad()


def plain(world, x, y):
    world.clear()
    loss = world.loss(x, y)
    loss.backward()
    world.one.step()
    world.two.step()
    return loss


def beside(by_hand, plain=plain, world=World):
    """A program whose eager side is written by hand, and whose other side is compiled."""

    def make(decorate):
        here = world()

        def step(x, y):
            return plain(here, x, y)

        compiled = decorate(step)
        if compiled is step:
            return Program(lambda x, y: by_hand(here, x, y), regression, watch=here)
        return Program(compiled, regression, watch=here)

    return make


def clipping(norm=None, value=None):
    def by_hand(world, x, y):
        world.clear()
        loss = world.loss(x, y)
        loss.backward()
        for net, optimizer in ((world.body, world.one), (world.head, world.two)):
            if norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), norm)
            if value is not None:
                nn.utils.clip_grad_value_(net.parameters(), value)
            optimizer.step()
        return loss

    return by_hand


@pytest.mark.parametrize("bounds", [{"norm": 0.05}, {"value": 0.01}, {"norm": 0.05, "value": 0.01}])
def test_clipping_comes_right_before_each_update(bounds):
    options = {f"clip_{name}": bound for name, bound in bounds.items()}

    step = same_as_eager(beside(clipping(**bounds)), decorated=True, **options)

    assert_captured(step)


@pytest.mark.parametrize("option", ["clip_norm", "clip_value"])
def test_the_same_code_is_captured_with_one_bound_after_another(option):
    for bound in (0.05, 0.1):
        by_hand = clipping(**{option.removeprefix("clip_"): bound})

        step = same_as_eager(beside(by_hand), 3, decorated=True, **{option: bound})

        assert_captured(step)


class OwnOptimizer(torch.optim.Optimizer):
    """An optimizer that may not be stepped twice to see what it does."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=-self.param_groups[0]["lr"])


def test_an_optimizer_of_ones_own_gets_clipped_gradients():
    class Own(World):
        def __init__(self):
            super().__init__()
            self.one = OwnOptimizer(self.body.parameters())

    assert_captured(
        same_as_eager(beside(clipping(norm=0.05), world=Own), 4, decorated=True, clip_norm=0.05)
    )


def test_a_clipping_option_and_a_call_by_hand_make_the_same_nodes():
    def by_hand_in_the_step(world, x, y):
        return clipping(norm=0.05)(world, x, y)

    def graph_of(step, **options):
        world = World()
        compiled = stepgraph.compile(lambda x, y: step(world, x, y), **options)
        for index in range(2):
            compiled(*regression(index))
        return [kind.value for kind in compiled.graphs[0].count()]

    assert graph_of(plain, clip_norm=0.05) == graph_of(by_hand_in_the_step)


def under_autocast(world, x, y):
    world.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = world.loss(x, y)
    loss.backward()
    world.one.step()
    world.two.step()
    return loss


def test_mixed_precision_is_the_autocast_step():
    step = same_as_eager(beside(under_autocast), decorated=True, precision="bf16-mixed")

    assert_captured(step)
    assert "torch.bfloat16" in str(flatten(step.graphs[0]).graph)


def plain_halves(world, x, y):
    """A forward after an update: the weights must be cast again."""
    first = plain(world, x, y)
    return first, plain(world, x, y)


def halves_under_autocast(world, x, y):
    return under_autocast(world, x, y), under_autocast(world, x, y)


def test_mixed_precision_casts_a_weight_again_after_its_update():
    step = same_as_eager(
        beside(halves_under_autocast, plain_halves), decorated=True, precision="bf16-mixed"
    )

    assert_captured(step)


def test_a_weight_used_twice_is_cast_once_between_two_updates():
    class Twice(World):
        def loss(self, x, y):
            return functional.mse_loss(self.head(self.body(x)) + self.head(self.body(-x)), y)

    step = same_as_eager(
        beside(under_autocast, world=Twice), decorated=True, precision="bf16-mixed"
    )

    casts = [
        node
        for node in flatten(step.graphs[0]).graph.nodes
        if node.target is torch.ops.aten._to_copy.default
        and node.kwargs.get("dtype") is torch.bfloat16
        and node.args[0].op == "placeholder"
    ]
    sources = [node.args[0] for node in casts]
    assert sources
    assert len(sources) == len(set(sources))


def test_accumulation_clipping_and_precision_go_together():
    index = 0

    def by_hand(world, x, y):
        nonlocal index
        index += 1
        if index % 2 == 1:
            world.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = world.loss(x, y)
        (loss / 2).backward()
        if index % 2 == 0:
            for net, optimizer in ((world.body, world.one), (world.head, world.two)):
                nn.utils.clip_grad_norm_(net.parameters(), 0.05)
                optimizer.step()
        return loss

    step = same_as_eager(
        beside(by_hand), decorated=True, accumulate=2, clip_norm=0.05, precision="bf16-mixed"
    )

    assert_captured(step)


class Scaled(World):
    """The world of a loop that scales its losses by hand."""

    def __init__(self, length=1):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu")
        self.length, self.index = length, 0


def scaled_by_hand(world, x, y, *, norm=None):
    first = world.index % world.length == 0
    last = world.index % world.length == world.length - 1
    world.index += 1
    if first:
        world.clear()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = world.loss(x, y)
    (world.scaler.scale(loss) / world.length).backward()
    if last:
        for net, optimizer in ((world.body, world.one), (world.head, world.two)):
            if norm is not None:
                world.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), norm)
            world.scaler.step(optimizer)
        world.scaler.update()
    return loss


def overflowing(index):
    x, y = regression(index)
    return (x * 1e30 if index in (3, 4, 9) else x), y


@pytest.mark.parametrize(("length", "norm"), [(1, None), (1, 0.05), (3, 0.05)])
def test_half_precision_scales_the_loss_as_by_hand(length, norm):
    def make(decorate):
        here = Scaled(length)
        trained = [here.body, here.head, here.one, here.two]

        def step(x, y):
            return plain(here, x, y)

        compiled = decorate(step)
        if compiled is step:
            by_hand = functools.partial(scaled_by_hand, here, norm=norm)
            return Program(by_hand, overflowing, watch=trained)
        return Program(compiled, overflowing, watch=trained)

    step = same_as_eager(
        make, 13, decorated=True, precision="16-mixed", accumulate=length, clip_norm=norm
    )

    assert_captured(step)
    halvings = 3 if length == 1 else 2  # of the scale, for updates that were skipped
    assert step.state_dict()["scaler"]["scale"] == 65536.0 / 2**halvings


def test_clipping_by_hand_under_half_precision_is_refused():
    world = World()

    def step(x, y):
        return clipping(norm=0.05)(world, x, y)

    with pytest.raises(ConfigurationError, match="clip_norm"):
        stepgraph.compile(step, precision="16-mixed")(*regression(0))


def test_a_loss_scale_survives_in_a_state_dict():
    def scaled():
        world = World()
        return stepgraph.compile(lambda x, y: plain(world, x, y), precision="16-mixed")

    torch.manual_seed(0)
    step, other = scaled(), scaled()
    for index in range(4):
        step(*overflowing(index))

    other.load_state_dict(step.state_dict())

    assert other.state_dict() == step.state_dict()
    assert step.state_dict()["scaler"]["scale"] == 32768.0


@dataclass(frozen=True)
class ChangeARate(Pass):
    """A wrong pass: it multiplies the first product of the step by two."""

    keeps_effects: ClassVar[bool] = True

    def __call__(self, step: StepGraph) -> StepGraph:
        flat = flatten(step)
        product = next(n for n in flat.graph.nodes if n.target is torch.ops.aten.addmm.default)
        with flat.graph.inserting_after(product):
            doubled = flat.graph.call_function(torch.ops.aten.mul.Tensor, (product, 2.0))
        doubled.meta = {**product.meta}
        product.replace_all_uses_with(doubled)
        doubled.args = (product, 2.0)
        return partition(flat)


@dataclass(frozen=True)
class LoseAnUpdate(Pass):
    """A wrong pass: it takes an update out of the step."""

    def __call__(self, step: StepGraph) -> StepGraph:
        flat = flatten(step)
        update = next(n for n in flat.graph.nodes if n.target is torch.ops.stepgraph.step.default)
        flat.graph.erase_node(update)
        return partition(flat)


@pytest.mark.parametrize(
    ("wrong", "words"), [(ChangeARate(), "differs from eager"), (LoseAnUpdate(), "effect was lost")]
)
def test_a_wrong_pass_is_found_and_the_step_stays_eager(wrong, words):
    step = same_as_eager(beside(plain), decorated=True, passes=lambda default: default.then(wrong))

    assert words in step.explain().fallback_reason
    assert not step.explain().captured


@dataclass(frozen=True)
class Count(Pass):
    """Does nothing; its name is in the report."""

    times: int = 1

    def __call__(self, step: StepGraph) -> StepGraph:
        return step


@pytest.mark.parametrize("passes", [lambda default: default.then(Count(2)), Pipeline((Count(2),))])
def test_a_pass_of_the_users_own_runs_and_is_reported(passes):
    step = same_as_eager(beside(plain), decorated=True, passes=passes)

    assert_captured(step)
    assert "Count(times=2)" in [record.name for record in step.explain().variants[0].passes]
    assert "Count" in str(step.explain())


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(ConfigurationError, match="not a pipeline"):
        stepgraph.compile(lambda: None, passes=lambda default: None)
    with pytest.raises(ConfigurationError, match="not a pipeline"):
        stepgraph.compile(lambda: None, passes=3)


def test_the_default_pipeline_is_not_changed_by_what_is_added_to_it():
    before = DEFAULT.passes

    DEFAULT.then(Count())

    assert DEFAULT.passes == before


@pytest.mark.parametrize("verify", [1, 3])
def test_verification_changes_nothing_when_nothing_differs(verify):
    def make():
        world = World()
        return Program(lambda x, y: plain(world, x, y), regression, watch=world)

    assert_captured(same_as_eager(make, verify=verify))


def test_verification_names_the_first_tensor_that_differs_and_keeps_what_eager_did():
    torch.manual_seed(0)
    world, other = World(), World()
    other.body.load_state_dict(world.body.state_dict())
    other.head.load_state_dict(world.head.state_dict())
    step = stepgraph.compile(lambda x, y: plain(world, x, y), verify=1)
    for index in range(2):
        step(*regression(index))
        plain(other, *regression(index))
    variant = step._variants[0]
    emitted = variant.rewritten.flat
    product = next(n for n in emitted.graph.nodes if n.target is torch.ops.aten.addmm.default)
    product.kwargs = {"alpha": 1.5}  # damage done after the capture: as if a kernel were wrong

    plain(other, *regression(2))
    with pytest.raises(VerificationError, match="at") as raised:
        step(*regression(2))

    assert raised.value.at is not None
    assert all(map(torch.equal, world.body.parameters(), other.body.parameters()))
    assert all(map(torch.equal, world.head.parameters(), other.head.parameters()))


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 0},
        {"clip_norm": -1.0},
        {"clip_value": "1"},
        {"verify": -1},
        {"precision": "half"},
    ],
)
def test_an_option_without_a_meaning_is_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        stepgraph.compile(lambda: None, **options)

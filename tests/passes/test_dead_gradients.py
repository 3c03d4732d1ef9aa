"""DropDeadGradients: what it removes, what it must not, and that nothing else changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from stepgraph.errors import ConfigurationError
from stepgraph.ir import Kind, partition
from stepgraph.ir.build import add, clear, flat_graph, part, step, store
from stepgraph.passes import DropDeadGradients, Pipeline
from support.harness import Program, assert_captured, draw, same_as_eager


class Duel:
    """The seed's GAN, small: a generator, and a critic that gets gradients it never uses."""

    def __init__(self):
        self.maker = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
        self.critic = nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 1))
        self.one = torch.optim.Adam(self.maker.parameters(), lr=0.01)
        self.two = torch.optim.Adam(self.critic.parameters(), lr=0.01)
        self.kept = []

    def judge(self, x, real):
        return functional.binary_cross_entropy_with_logits(
            self.critic(x), torch.full((len(x), 1), float(real))
        )


def duel(world, x, noise, index=0):
    made = world.maker(noise)
    loss = world.judge(x, real=True) + world.judge(made.detach(), real=False)
    world.two.zero_grad()
    loss.backward()
    world.two.step()
    other = world.judge(made, real=True)
    world.one.zero_grad()
    other.backward()
    world.one.step()
    return loss, other


def batch(index):
    return draw(6, 4, seed=index), draw(6, 3, seed=-index - 1)


class Weights:
    """What must be the same although gradients are not."""

    def __init__(self, world):
        self.values = [world.maker.state_dict(), world.critic.state_dict(), world.kept]
        self.states = [world.one.state_dict, world.two.state_dict]

    def read(self):
        return [*self.values, *(state()["state"] for state in self.states)]


def trained(body, calls=8, **options):
    torch.manual_seed(0)
    world = Duel()
    compiled = stepgraph.compile(lambda *args: body(world, *args), on_fallback="error", **options)
    results = [compiled(*batch(index), index) for index in range(calls)]
    return world, compiled, results


def assert_same_training(body, calls=8):
    """Assert that dropped gradients change no weight, no state and no result."""
    kept, _, expected = trained(body, calls)
    dropped, compiled, results = trained(body, calls, keep_grads=False)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    left, right = Weights(kept).read(), Weights(dropped).read()
    torch.testing.assert_close(right, left, rtol=0, atol=0)
    return dropped, compiled


def products(graph):
    """The matrix products of the backward regions."""
    targets = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    regions = [graph.region(n) for n in graph.nodes if graph.kind(n) is Kind.BACKWARD]
    return sum(node.target in targets for region in regions for node in region.graph.nodes)


def test_a_gan_trains_the_same_without_the_critics_products_in_the_generators_half():
    world, compiled = assert_same_training(duel)

    (before,), (after,) = compiled.captured_graphs, compiled.graphs
    assert products(before) - products(after) == 2  # one for each weight matrix of the critic
    assert all(p.grad is None for p in world.critic.parameters())
    assert all(p.grad is None for p in world.maker.parameters())  # read, and not kept


def test_the_explanation_says_which_gradients_and_how_many_operations():
    _, compiled = assert_same_training(duel)

    text = " ".join(str(compiled.explain()).split())

    # 6 samples through 5x4 and 1x5 weights, two operations for each multiplication
    assert f"-{2 * 6 * (5 * 4 + 1 * 5)} floating-point operations" in text
    assert "world.critic.0.weight" in text
    assert "4 in all" in text


def test_gradients_are_kept_unless_the_caller_lets_them_go():
    world, compiled, _ = trained(duel)

    assert all(p.grad is not None for p in world.critic.parameters())
    assert products(compiled.captured_graphs[0]) == products(compiled.graphs[0])


def test_a_second_run_finds_nothing_more():
    _, compiled = assert_same_training(duel, calls=3)
    graph = compiled.graphs[0].copy()
    before = str(graph)

    again, records = Pipeline((DropDeadGradients(),))(graph)

    assert str(again) == before
    assert not records[0].acted


def reads_the_norm_afterwards(world, x, noise, index):
    losses = duel(world, x, noise)
    return losses, nn.utils.get_total_norm([p.grad for p in world.critic.parameters()])


def steps_the_critic_again(world, x, noise, index):
    losses = duel(world, x, noise)
    world.two.step()
    return losses


def never_clears_the_critic(world, x, noise, index):
    loss = world.judge(x, real=True)
    loss.backward()
    world.two.step()
    other = world.judge(world.maker(noise), real=True)
    world.one.zero_grad()
    other.backward()
    world.one.step()
    return loss, other


def clears_the_critic_late(world, x, noise, index):
    loss = world.judge(x, real=True)
    loss.backward()
    world.two.step()
    world.two.zero_grad()
    other = world.judge(world.maker(noise), real=True)
    world.one.zero_grad()
    other.backward()
    world.one.step()
    return loss, other


def returns_it(world, x, noise, index):
    losses = duel(world, x, noise)
    return losses, [p.grad for p in (*world.critic.parameters(), *world.maker.parameters())]


def returns_views_of_it(world, x, noise, index):
    losses = duel(world, x, noise)
    return losses, [p.grad[0] for p in world.critic.parameters()]


@pytest.mark.parametrize(
    "body",
    [
        reads_the_norm_afterwards,
        returns_it,
        returns_views_of_it,
        steps_the_critic_again,
        never_clears_the_critic,
        clears_the_critic_late,
    ],
)
def test_a_gradient_that_somebody_reads_is_computed(body):
    _, compiled = assert_same_training(body)

    for before, after in zip(compiled.captured_graphs, compiled.graphs, strict=True):
        assert products(before) == products(after)


def test_a_call_that_would_use_a_dropped_gradient_is_an_error():
    def body(world, x, noise, index):
        if index < 4:
            return duel(world, x, noise)
        return never_clears_the_critic(world, x, noise, index)

    with pytest.raises(ConfigurationError, match="was not kept"):
        trained(body, keep_grads=False)


def test_other_steps_are_left_alone():
    def make():
        net = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return Program(step, lambda index: (draw(3, 4, seed=index), draw(3, 2, seed=-index - 1)))

    def only_dead(default):
        return Pipeline(tuple(p for p in default if isinstance(p, DropDeadGradients)))

    assert_captured(same_as_eager(make, keep_grads=False, passes=only_dead))


def two_backwards(x, w, v):
    """Clears, steps v on a first gradient, then lets a second backward add to it."""
    clear([v], 0)
    with part(Kind.FORWARD):
        loss = (x @ v).sum()
    with part(Kind.BACKWARD):
        (first,) = torch.autograd.grad(loss, [v])
    grad = store(v, first)
    step([v], [grad], 0)
    with part(Kind.FORWARD, 1):
        other = (x @ w @ v).sum()
    with part(Kind.BACKWARD, 1):
        gw, gv = torch.autograd.grad(other, [w, v])
    add(grad, gv)
    step([w], [store(w, gw)], 1)


def test_the_picture():
    inputs = {
        "batch:x": torch.ones(2, 3),
        "param:w": torch.ones(3, 3, requires_grad=True),
        "param:v": torch.ones(3, 1, requires_grad=True),
    }
    graph = partition(flat_graph(two_backwards, inputs, labels={0: "two", 1: "one"}))

    graph, (record,) = Pipeline((DropDeadGradients(),))(graph)

    lines = [line.split("  ")[-1] for line in str(graph).splitlines()]
    assert "v.grad += ..." not in str(graph)
    assert any("v.grad = None" in line for line in lines)
    assert any("w.grad = ..." in line for line in lines)
    assert record.lost == ("grad:v",)

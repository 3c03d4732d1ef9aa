"""EarlyUpdate: what it moves, what it must not, and that nothing else changes."""

import pytest
import torch
from hypothesis import given
from torch import nn, optim
from torch.nn import functional

import stepgraph
from ir.drawn import flat_graphs
from ir.reference import run, same
from stepgraph.analysis import peak
from stepgraph.ir import Kind, flatten, marker_name, partition, slot_name
from stepgraph.ir import build as b
from stepgraph.passes import DropReadGradients, EarlyUpdate, Pipeline
from support.harness import Program, assert_captured, draw, same_as_eager

EVERY = Pipeline((EarlyUpdate(bucket_bytes=1),))


def chain(between=lambda *values: None, after=lambda *values: None, ends=True):
    """A step with two weights; `between` comes ahead of the update, `after` behind it."""

    def step(x, w, v):
        with b.part(Kind.FORWARD):
            loss = torch.tanh(x @ w) @ v
            loss = loss.sum()
        with b.part(Kind.BACKWARD):
            gw, gv = torch.autograd.grad(loss, [w, v])
        grads = [b.store(w, gw), b.store(v, gv)]
        between(x, w, v, *grads)
        b.step([w, v], grads)
        after(x, w, v, *grads)
        if ends:
            b.clear([w, v])
        return loss

    return step


def graph_of(step):
    inputs = {
        "batch:x": torch.ones(2, 3),
        "param:w": torch.full((3, 3), 0.5, requires_grad=True),
        "param:v": torch.full((3, 1), 0.5, requires_grad=True),
    }
    return partition(b.transparent(b.flat_graph(step, inputs, labels={0: "SGD(opt)"})))


def order(graph):
    """The products of the step, its updates and its clearings, in order."""
    found = []
    for node in flatten(graph).graph.nodes:
        name = marker_name(node)
        if name in ("step", "step_part", "zero_grad"):
            slots = " ".join(map(slot_name, node.args[0]))
            found.append(f"{'clear' if name == 'zero_grad' else 'step'} {slots}".strip())
        elif node.target is torch.ops.aten.mm.default:
            found.append(node.meta["stepgraph.kind"].value)
    return found


def said(graph):
    _, (record,) = EVERY(graph)
    return record.did


def test_the_picture():
    graph = graph_of(chain())
    before = ["forward", "forward", "backward", "backward", "backward", "step w v", "clear w v"]
    assert order(graph) == before

    graph, (record,) = EVERY(graph)

    assert order(graph) == [
        *("forward", "forward"),
        *("backward", "backward", "step v", "clear v"),  # with the product that reads the old v
        *("backward", "step w", "clear w"),
    ]
    assert record.did == ("early update 1 of 2 (1 wait for: the end of the backward)",)
    assert record.peak_bytes_after < record.peak_bytes_before


def test_buckets_are_filled_before_they_move():
    graph, (record,) = Pipeline((EarlyUpdate(bucket_bytes=13),))(graph_of(chain()))

    assert "step w v" in order(graph)  # v alone has 12 bytes
    assert "1 wait for: a full bucket" in record.did[0]


def test_a_step_with_few_gradients_is_not_worth_a_word():
    _, (record,) = Pipeline((EarlyUpdate(),))(graph_of(chain()))

    assert not record.acted


def norm(x, w, v, gw, gv):
    with b.part(Kind.GRAD_NORM):
        total = torch.linalg.vector_norm(torch.stack([gw.norm(), gv.norm()]))
    with b.part(Kind.CLIP), torch.no_grad():
        torch._foreach_mul_([gw, gv], 1 / (total + 1))


def reads_the_old_weight(x, w, v, *_):
    with b.part(Kind.FORWARD, 1):
        product = x @ v.detach()
    b.log(product)


def second_backward(x, w, v, gw, gv):
    with b.part(Kind.BACKWARD, 1):
        value = torch.tanh(x).sum(0)[:, None]
    b.add(gv, value)


def may_raise(x, w, v, *_):
    with b.part(Kind.FORWARD, 1):
        b.OPS.check.default(w.detach() > 0)


def new_learning_rate(x, w, v, *_):
    with b.part(Kind.FORWARD, 1):
        rate = torch.tanh(x).mean()
    b.set_lr(rate)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (norm, "2 wait for: gradient norm"),
        (reads_the_old_weight, "wait for: the end of the backward"),
        (second_backward, "wait for: the end of the backward"),
        (may_raise, "2 wait for: check, which may raise"),
        (new_learning_rate, "2 wait for: learning rate"),
    ],
)
def test_an_update_waits_for_what_comes_between(between, reason):
    graph = graph_of(chain(between))

    graph, (record,) = EVERY(graph)

    assert _last(order(graph), "v") > _last(order(graph), "ward")  # the products
    assert reason in record.did[0]


def _last(found, what):
    return max(i for i, one in enumerate(found) if what in one and "clear" not in one)


def test_a_gradient_that_stays_keeps_its_update():
    assert said(graph_of(chain(ends=False))) == ("early update 0 of 2 (2 keep their .grad)",)


def test_a_gradient_that_is_read_after_the_update_keeps_it():
    def reads(x, w, v, gw, gv):
        b.log(gv)

    assert said(graph_of(chain(after=reads))) == (
        "early update 0 of 2 (1 wait for: the end of the backward; 1 keep their .grad)",
    )


def test_an_opaque_step_is_not_divided():
    graph = graph_of(chain())
    for node in graph.nodes:
        node.meta.pop("stepgraph.divisible", None)

    assert said(graph) == ("early update 0 of 2 (2 wait for: a step() that is not divided)",)


@given(flat_graphs())
def test_drawn_steps_do_the_same(drawn):
    flat, inputs = drawn

    graph, _ = EVERY(partition(flat))

    assert same(run(flatten(graph), flat, inputs), run(flat, flat, inputs))


@given(flat_graphs())
def test_a_second_run_finds_nothing_more(drawn):
    flat, _ = drawn
    graph, _ = EVERY(partition(flat))
    once = str(flatten(graph).graph)

    again, _ = EVERY(graph)

    assert str(flatten(again).graph) == once


# --- captured steps


def every(default):
    """The default passes, with buckets of one byte."""
    return Pipeline(tuple(p for p in default if type(p) is not EarlyUpdate) + EVERY.passes)


def deep(make_optimizer, *, clears_first=False, clip=False):
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
        optimizer = make_optimizer(net)
        schedule = optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)

        def step(x, y):
            if clears_first:
                optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            if not clears_first:
                optimizer.zero_grad()
            return loss

        def batch(index):
            return draw(3, 4, seed=index), draw(3, 2, seed=-index - 1)

        return Program(step, batch, watch=[net, optimizer, schedule])

    return make


OPTIMIZERS = {
    "AdamW": lambda net: optim.AdamW(net.parameters(), lr=0.1),
    "Adam amsgrad foreach": lambda net: optim.Adam(net.parameters(), amsgrad=True, foreach=True),
    "SGD momentum groups": lambda net: optim.SGD(
        [{"params": net[0].parameters()}, {"params": net[2:].parameters(), "lr": 0.01}],
        lr=0.1,
        momentum=0.9,
    ),
    "Adafactor": lambda net: optim.Adafactor(net.parameters()),
    "SGD fused": lambda net: optim.SGD(net.parameters(), lr=0.1, fused=True),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_does_in_parts_what_it_does_at_once(make_optimizer):
    result = same_as_eager(deep(make_optimizer), passes=every)

    assert_captured(result)
    (variant,) = result.explain().variants
    assert variant.nodes["step"] > 1
    assert "early update" in variant.passes[-1].did[0]


def test_a_norm_keeps_all_of_them():
    result = same_as_eager(deep(OPTIMIZERS["AdamW"], clip=True), passes=every)

    assert_captured(result)
    (variant,) = result.explain().variants
    assert variant.nodes["step"] == 1
    assert "6 wait for: gradient norm" in variant.passes[-1].did[0]


def test_gradients_that_the_caller_lets_go_end_behind_their_update():
    torch.manual_seed(0)
    results = []
    for options in ({}, {"keep_grads": False, "passes": every}):
        program = deep(OPTIMIZERS["AdamW"], clears_first=True)()
        step = stepgraph.compile(program.step, on_fallback="error", **options)
        losses = [step(*program.batch(index)).item() for index in range(6)]
        results.append((losses, program.watch[0].state_dict()))

    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in program.watch[0].parameters())
    before, after = (
        peak(g.flat().graph).bytes for g in (step.captured_graphs[-1], step.graphs[-1])
    )
    assert after < before


def test_hooks_that_come_later_see_one_step():
    def make():
        program = deep(OPTIMIZERS["AdamW"])()
        optimizer, calls = program.watch[1], []

        def between(index):
            if index == 4:
                optimizer.register_step_post_hook(lambda *_: calls.append(1))

        program.between, program.watch = between, [*program.watch, calls]
        return program

    same_as_eager(make, passes=every)


def test_a_scheduler_that_comes_later_counts_one_step():
    program = deep(OPTIMIZERS["AdamW"])()
    _, optimizer, schedule = program.watch
    step = stepgraph.compile(program.step, on_fallback="error", passes=every)

    for index in range(5):
        step(*program.batch(index))

    assert schedule._step_count == 6  # one is its own
    assert [len(group["params"]) for group in optimizer.param_groups] == [6]


def test_reading_ends_where_it_is_said():
    """DropReadGradients: the picture."""

    def step(x, w, v):
        b.clear([w, v])
        chain(ends=False)(x, w, v)

    graph = graph_of(step)

    graph, (record,) = Pipeline((DropReadGradients(),))(graph)

    assert str(graph).splitlines()[-1].endswith(" w.grad, v.grad = None")
    assert record.did == ("2 gradients of 48 bytes are freed after their last use",)


def test_what_is_not_cleared_first_is_kept():
    graph = graph_of(chain(ends=False))

    _, (record,) = Pipeline((DropReadGradients(),))(graph)

    assert not record.acted

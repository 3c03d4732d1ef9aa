"""One variant for each path, each state of the gradients and each shape; then no more."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from stepgraph.compiler.variants.capture_session import CaptureSession
from stepgraph.errors import ConfigurationError
from support.harness import (
    Program,
    assert_captured,
    assert_captured_or_explained,
    assert_falls_back,
    mlp,
    regression,
    same_as_eager,
)


class World:
    def __init__(self, net=None, lr=0.1):
        self.net = net or mlp()
        self.opt = torch.optim.SGD(self.net.parameters(), lr=lr, momentum=0.9)
        self.losses = []

    def train(self, x, y):
        self.opt.zero_grad()
        loss = functional.mse_loss(self.net(x), y)
        loss.backward()
        self.opt.step()
        return loss


def calls_until_steady(step, batches):
    """The number of captures after every call."""
    captures = []
    for batch in batches:
        step(*batch)
        captures.append(step.explain().captures)
    return captures


def weights(compiler, calls):
    """Final weights of an epoch-wise training: a schedule, accumulation, a short last batch."""
    torch.manual_seed(0)
    net = mlp()
    opt = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100)

    def step(x, y, index):
        loss = functional.mse_loss(net(x), y) / 4
        loss.backward()
        if (index + 1) % 4 == 0:
            opt.step()
            opt.zero_grad()
            schedule.step()
        return loss

    compiled, captures = compiler(step), []
    data = [regression(index) for index in range(10)]
    for call in range(calls):
        index = call % 10
        x, y = data[index]
        compiled(*((x[:3], y[:3]) if index == 9 else (x, y)), index)
        captures.append(compiled.explain().captures if compiled is not step else 0)
    return list(net.parameters()), schedule.last_epoch, captures, compiled


def test_a_thousand_calls_with_a_schedule_accumulation_and_a_short_batch_settle():
    eager, epoch, *_ = weights(lambda step: step, 1000)
    compiled, ours, captures, step = weights(stepgraph.compile(on_fallback="error"), 1000)

    assert all(map(torch.equal, eager, compiled))
    assert epoch == ours
    assert captures[-1] <= 8
    assert captures[-1] == captures[199], "captured in the last 800 calls"
    assert_captured(step)


def test_nothing_is_captured_once_each_combination_was_met_twice():
    """Two epochs of ten calls meet every combination of path, gradients and shape at least twice
    but the short one, which four epochs do."""
    *_, captures, step = weights(stepgraph.compile(on_fallback="error"), 120)

    assert captures[-1] == captures[39]
    assert step.explain().replays >= 120 - 1 - 2 * captures[-1]


def test_a_step_of_one_path_is_captured_once():
    torch.manual_seed(0)
    world = World()
    step = stepgraph.compile(world.train, on_fallback="error")

    captures = calls_until_steady(step, [regression(index) for index in range(12)])

    assert captures == [0] + [1] * 11
    assert step.explain().replays == 10


def test_gradients_that_are_none_or_not_are_two_variants():
    def make():
        world = World()

        def step(x, y):
            loss = functional.mse_loss(world.net(x), y)
            loss.backward()
            world.opt.step()
            return loss

        def between(index):
            if index % 3 == 0:
                world.opt.zero_grad(set_to_none=True)

        return Program(step, regression, watch=world, between=between)

    step = same_as_eager(make, calls=13)

    assert_captured(step)
    assert step.explain().captures == 2


def test_gradients_of_one_model_are_kept_and_those_of_another_are_new():
    def make():
        first, second = World(), World()

        def step(x, y):
            functional.mse_loss(first.net(x), y).backward()
            functional.mse_loss(second.net(x), y).backward()
            first.opt.step()
            second.opt.step()
            second.opt.zero_grad()

        return Program(step, regression, watch=[first, second])

    assert_captured(same_as_eager(make))


def test_gradients_that_are_zero_and_gradients_that_are_none_differ():
    def make():
        world = World()
        world.opt = torch.optim.SGD(world.net.parameters(), lr=0.1, weight_decay=0.1)

        def step(x, y):
            loss = functional.mse_loss(world.net[0](x), y.repeat(1, 3)[:, :5])
            loss.backward()
            world.opt.step()
            return loss

        def between(index):
            if index in (3, 6, 8):
                world.opt.zero_grad(set_to_none=index == 6)
            if index == 3:
                world.net[2].weight.grad = torch.zeros(2, 5)

        return Program(step, regression, watch=world, between=between)

    assert_captured(same_as_eager(make, calls=10))


def with_mode():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))


def test_train_and_eval_mode_are_two_variants():
    def make():
        world = World(with_mode())

        def between(index):
            world.net.train(index % 4 < 2)

        return Program(world.train, regression, between=between)

    step = same_as_eager(make, calls=14)

    assert_captured(step)
    assert step.explain().captures == 2


def test_one_layer_in_eval_mode_is_another_variant():
    def make():
        world = World(with_mode())

        def between(index):
            world.net[1].train(index < 5)

        return Program(world.train, regression, between=between)

    step = same_as_eager(make, calls=10)

    assert_captured(step)
    assert step.explain().captures == 2


def test_the_mode_changed_inside_the_step_is_exact():
    def make():
        world = World(with_mode())

        def step(x, y):
            world.net.eval()
            with torch.no_grad():
                before = world.net(x)
            world.net.train()
            return world.train(x, y + before)

        return Program(step, regression, watch=world)

    assert_captured_or_explained(same_as_eager(make))


def test_another_dtype_of_the_batch_is_another_variant():
    def make():
        world = World()

        def step(x, y):
            return world.train(x.float() / 2, y)

        def batch(index):
            x, y = regression(index)
            return (x.double() if index % 4 > 1 else x.to(torch.int64)), y

        return Program(step, batch, watch=world)

    step = same_as_eager(make, calls=12)

    assert_captured(step)
    assert step.explain().captures == 2


def test_the_length_of_the_batch_becomes_a_symbol():
    def make():
        world = World()

        def batch(index):
            x, y = regression(index)
            length = 1 + (index * 5) % 6
            return x[:length], y[:length]

        return Program(world.train, batch)

    step = same_as_eager(make, calls=20)

    assert_captured(step)
    assert step.explain().captures <= 3  # static, symbolic, and a batch of one


def lengths(*values):
    def make():
        world = World()

        def batch(index):
            x, y = regression(index)
            return x[: values[index]], y[: values[index]]

        return Program(world.train, batch)

    return same_as_eager(make, calls=len(values))


def test_a_batch_of_one_is_captured():
    assert_captured(lengths(6, 6, 6, 1, 6, 1, 3, 6))


def test_an_empty_batch_is_exact():
    step = lengths(6, 6, 6, 0, 6, 0, 3)

    assert step.explain().captured


def test_a_batch_with_other_strides_is_exact():
    def make():
        world = World()

        def step(x, y):
            return world.train(x * 2, y).detach(), x.sin()

        def batch(index):
            x, y = regression(index)
            if index in (3, 6):
                x = x.t().contiguous().t()
            if index in (4, 7):
                x = x.repeat(2, 2)[::2, ::2]
            if index == 5:
                x = x[:1].expand(6, 4)
            return x, y

        return Program(step, batch, watch=world)

    assert_captured(same_as_eager(make, calls=10))


def test_arguments_that_share_memory_are_exact():
    def make():
        world = World()

        def step(x, y):
            y = y * 2
            x.mul_(0.5)
            return world.train(x, x[:, :2] + y[:, :2])

        def batch(index):
            x, y = regression(index)
            return (x, x) if index in (2, 5, 6) else (x, x[:, 1:3] if index == 4 else y)

        return Program(step, batch, watch=world)

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_a_batch_that_requires_gradients_is_another_variant():
    def make():
        world = World()

        def step(x, y):
            loss = world.train(x, y)
            return loss, x.grad

        def batch(index):
            x, y = regression(index)
            return x.requires_grad_(index % 3 == 2), y

        return Program(step, batch, watch=world)

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_strings_enums_and_flags_select_paths():
    def make():
        world = World()

        def step(x, y, kind, *, double=False):
            loss = {"l1": functional.l1_loss, "l2": functional.mse_loss}[kind](world.net(x), y)
            loss = loss * 2 if double else loss
            world.opt.zero_grad()
            loss.backward()
            world.opt.step()
            return loss, kind

        def batch(index):
            x, y = regression(index)
            kind = "l1" if index % 2 else "l2"
            return {"x": x, "y": y, "kind": kind, "double": index % 4 > 1}

        return Program(step, batch, watch=world)

    step = same_as_eager(make, calls=16)

    assert_captured(step)
    assert step.explain().captures == 4


def test_an_attribute_of_the_owner_selects_the_path():
    def make():
        world = World()
        world.phase, world.weight = "warm", 1.0

        def step(x, y):
            loss = functional.mse_loss(world.net(x), y) * world.weight
            if world.phase == "train":
                loss = loss + sum(p.square().sum() for p in world.net.parameters())
            world.opt.zero_grad()
            loss.backward()
            world.opt.step()
            return loss

        def between(index):
            world.phase = "train" if index % 4 > 1 else "warm"
            world.weight = 1.0 + index // 8

        return Program(step, regression, watch=world, between=between)

    step = same_as_eager(make, calls=20)

    assert_captured(step)
    assert step.explain().captures <= 8


def many_paths(x, y, world, kind):
    loss = functional.mse_loss(world.net(x), y)
    for _ in range(kind):
        loss = loss * 1.5
    world.opt.zero_grad()
    loss.backward()
    world.opt.step()
    return loss


def paths(limit):
    def make():
        world = World(lr=0.01)

        def step(x, y, kind):
            return many_paths(x, y, world, int(kind))

        return Program(step, lambda index: (*regression(index), str(index % limit)), watch=world)

    return make


def test_more_paths_than_the_limit_run_eagerly_with_a_reason(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "3")

    step = same_as_eager(paths(5), calls=20)

    assert_falls_back(step, "variant")
    assert step.explain().captures == 3
    assert step.explain().captured


def test_variants_made_before_the_limit_still_replay_after_it(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "2")
    torch.manual_seed(0)
    program = paths(4)()
    step = stepgraph.compile(program.step, on_fallback="silent")
    for index in range(12):
        step(*program.batch(index))

    before = step.explain().replays
    x, y = regression(0)
    for kind in "0123":
        step(x, y, kind)

    assert step.explain().replays == before + 2


def test_paths_up_to_the_limit_are_all_captured():
    step = same_as_eager(paths(8), calls=25)

    assert_captured(step)
    assert step.explain().captures == 8


def test_a_capture_that_fails_is_tried_eight_times(monkeypatch):
    monkeypatch.delenv("STEPGRAPH_MAX_CAPTURE_FAILURES")
    attempts = []
    honest = CaptureSession.capture

    def counted(*args, **kwargs):
        attempts.append(1)
        return honest(*args, **kwargs)

    monkeypatch.setattr(CaptureSession, "capture", counted)
    net = nn.Linear(4, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)

    @stepgraph.compile(on_fallback="silent")
    def step(x, y):
        opt.zero_grad()
        loss = functional.mse_loss(net(x), y)
        loss.backward()
        opt.step()
        return loss if loss > 0 else None

    for index in range(12):
        step(*regression(index))

    assert len(attempts) == 8
    assert_falls_back(step, "branch")
    assert [fallback.count for fallback in step.explain().fallbacks] == [11]


def test_a_thousand_appends_with_a_clear_in_between_are_two_captures():
    def losses_of(compiler):
        torch.manual_seed(0)
        world = World(nn.Linear(4, 2))

        def step(x, y):
            loss = world.train(x, y)
            world.losses.append(loss.detach())

        step, kept = compiler(step), []
        for index in range(1000):
            step(*regression(index % 7))
            if index == 500:
                kept = list(world.losses)
                world.losses.clear()
        return kept + world.losses, step

    eager, _ = losses_of(lambda step: step)
    compiled, step = losses_of(stepgraph.compile(on_fallback="silent"))

    assert len(compiled) == 1000
    assert all(map(torch.equal, eager, compiled))
    assert step.explain().captures <= 2
    assert step.explain().fallback_reason is None


def test_a_list_that_is_replaced_takes_the_next_appends():
    def make():
        world = World()

        def step(x, y):
            world.losses.append(world.train(x, y).detach())

        def between(index):
            if index in (3, 7):
                world.losses = [] if index == 3 else [torch.zeros(())]

        return Program(step, regression, watch=world, between=between)

    assert_captured(same_as_eager(make, calls=12))


def test_a_learning_rate_that_changes_in_every_call_is_one_variant():
    def make():
        world = World()
        schedule = torch.optim.lr_scheduler.OneCycleLR(world.opt, max_lr=0.5, total_steps=60)

        def step(x, y):
            loss = world.train(x, y)
            schedule.step()
            return loss

        def between(index):
            if index == 7:
                world.opt.param_groups[0]["lr"] = 0.25
            if index == 9:
                world.opt.load_state_dict(world.opt.state_dict())

        return Program(step, regression, watch=[world, schedule], between=between)

    step = same_as_eager(make, calls=20)

    assert_captured(step)
    assert step.explain().captures == 1


def test_a_parameter_group_added_between_the_calls_is_trained():
    def make():
        world = World()
        world.extra = nn.Parameter(torch.ones(2))

        def step(x, y):
            return world.train(x, y * world.extra)

        def between(index):
            if index == 4:
                world.opt.add_param_group({"params": [world.extra], "lr": 0.5})

        return Program(step, regression, watch=world, between=between)

    assert_captured(same_as_eager(make, calls=9))


def test_two_instances_of_a_class_have_variants_of_their_own():
    class Learner(World):
        @stepgraph.compile(on_fallback="error")
        def learn(self, x, y):
            return self.train(x, y)

    torch.manual_seed(0)
    first, second = Learner(), Learner(mlp(hidden=3))
    for index in range(4):
        first.learn(*regression(index))
    assert second.learn.explain().captures == 0
    for index in range(4):
        second.learn(*regression(index))

    assert first.learn.explain().captures == second.learn.explain().captures == 1
    assert len(first.learn.graphs) == len(second.learn.graphs) == 1


def test_more_instances_of_a_class_than_there_may_be_variants_are_all_captured():
    class Learner(World):
        @stepgraph.compile(on_fallback="error")
        def learn(self, x, y):
            return self.train(x, y)

    learners = [Learner(nn.Linear(4, 2)) for _ in range(10)]
    for index in range(3):
        for learner in learners:
            learner.learn(*regression(index))

    assert all(learner.learn.explain().captured for learner in learners)


def test_a_method_whose_object_is_gone_says_so():
    class Learner(World):
        @stepgraph.compile
        def learn(self, x, y):
            return self.train(x, y)

    learn = Learner().learn

    with pytest.raises(ConfigurationError, match="an object that no longer exists"):
        learn(*regression(0))


def test_a_reset_forgets_the_variants():
    torch.manual_seed(0)
    world = World()
    step = stepgraph.compile(world.train, on_fallback="error")
    for index in range(4):
        step(*regression(index))

    step.reset()

    assert step.explain().captures == 0
    assert not step.explain().captured
    assert step.graphs == step.captured_graphs == ()
    for index in range(4):
        step(*regression(index))
    assert step.explain().captured


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_eager_calls_in_between_change_nothing(calls):
    torch.manual_seed(0)
    plain = World()
    torch.manual_seed(0)
    world = World()
    step = stepgraph.compile(world.train, on_fallback="error")
    for index in range(8):
        plain.train(*regression(index))
        (step.eager if index % 4 >= calls else step)(*regression(index))

    assert all(map(torch.equal, plain.net.parameters(), world.net.parameters()))
    assert step.explain().captured or calls == 1


def test_sizes_of_one_step_do_not_make_those_of_another_symbolic():
    def of_one_code(*lengths):
        world = World()

        def step(x, y):
            return world.train(x, y)

        compiled = stepgraph.compile(step, on_fallback="error")
        for length in lengths:
            compiled(torch.ones(length, 4), torch.ones(length, 2))
        return compiled.explain().captures

    assert of_one_code(6, 6, 6) == 1
    assert of_one_code(5, 5, 5) == 1
    assert of_one_code(4, 4, 3, 4) == 2  # the first variant is for four rows, not for any number

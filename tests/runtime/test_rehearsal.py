"""Rehearsals: nothing they run stays, and one wrong bit of a program is found and named."""

import copy

import pytest
import torch
from torch import nn

from stepgraph.runtime.rehearsal import (
    PartialRehearsal,
    WholeRehearsal,
    at_entry_of,
    restored_rng,
    results_of,
)


class World:
    """What a step acts on: a model with buffers and dropout, an optimizer, a schedule, a list."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.net.append(nn.Linear(4, 2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.opt = torch.optim.Adam(self.net.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.opt, 0.9)
        self.losses = []
        self.x = torch.randn(6, 3)

    def train(self):
        """One step; returns what the user's Python returns."""
        self.opt.zero_grad()
        loss = self.net(self.x).square().mean()
        loss.backward()
        self.opt.step()
        self.schedule.step()
        return loss.detach()

    @property
    def weight(self):
        return self.net[0].weight

    @property
    def state(self):
        return self.opt.state[self.weight]

    def inputs(self):
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        return {**tensors, "frozen": self.frozen, "x": self.x, "lr": 0.1}

    def owners(self):
        return {"opt": self.opt, "schedule": self.schedule}

    def everything(self):
        """A copy of all there is."""
        tensors = {name: v for name, v in self.inputs().items() if isinstance(v, torch.Tensor)}
        grads = {name: v.grad for name, v in tensors.items()}
        states = [self.opt.state_dict(), self.schedule.state_dict(), self.losses]
        return copy.deepcopy([{n: v.detach() for n, v in tensors.items()}, grads, states])


def assert_equal(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def trained_world():
    world = World()
    for _ in range(2):
        world.train()
    return world


def whole(world, program, **options):
    inputs = world.inputs()
    return WholeRehearsal(
        lambda *args: program(), list(inputs.values()), list(inputs), world.owners(), **options
    )


def rehearsed(world, wrong=lambda world: None, eager=None, **options):
    """Rehearse a program that is right but for one thing, then run the user's Python."""

    def program():
        loss = world.train()
        wrong(world)
        return (loss,)

    rehearsal = whole(world, program, **options)
    result = eager() if eager else world.train()
    rehearsal.compare()
    rehearsal.compare_result(result)
    return rehearsal


def flip(tensor):
    """Change the last bit of the first element."""
    bits = tensor.detach().view(-1).view(torch.int32)
    bits[0] ^= 1


def test_a_program_that_does_what_the_step_does_is_accepted():
    assert rehearsed(trained_world()).difference is None


def test_a_program_is_accepted_that_makes_the_first_gradients_and_state():
    assert rehearsed(World()).difference is None


WRONG = {
    "0.weight": lambda world: flip(world.weight),
    "1.running_mean": lambda world: flip(world.net[1].running_mean),
    "1.num_batches_tracked": lambda world: world.net[1].num_batches_tracked.add_(1),
    "0.weight.grad": lambda world: flip(world.weight.grad),
    "0.weight.grad is None": lambda world: setattr(world.weight, "grad", None),
    "frozen.grad is None": lambda world: setattr(world.frozen, "grad", torch.ones(2)),
    "frozen.requires_grad": lambda world: world.frozen.requires_grad_(True),
    "x": lambda world: flip(world.x),
    "opt.state.0.exp_avg": lambda world: flip(world.state["exp_avg"]),
    "opt.state.0.step": lambda world: world.state["step"].add_(1),
    "opt.state.0.new": lambda world: world.state.__setitem__("new", torch.ones(1)),
    "opt.param_groups[0].lr": lambda world: world.opt.param_groups[0].update(lr=0.0),
    "schedule.last_epoch": lambda world: setattr(world.schedule, "last_epoch", 0),
    "torch's random state": lambda world: torch.rand(1),
}


@pytest.mark.parametrize("path", WRONG)
def test_one_wrong_bit_is_found_and_named(path):
    assert rehearsed(trained_world(), WRONG[path]).difference == path


@pytest.mark.parametrize("path", WRONG)
def test_what_a_wrong_program_has_written_is_gone_before_the_users_python_runs(path):
    world, plain = trained_world(), trained_world()
    before, randomness = plain.everything(), torch.get_rng_state()
    seen = []

    def eager():
        seen.append(world.everything())
        assert torch.equal(torch.get_rng_state(), randomness)
        return world.train()

    rehearsed(world, WRONG[path], eager)
    torch.set_rng_state(randomness)
    plain.train()

    assert_equal(seen, [before])
    assert_equal(world.everything(), plain.everything())


def test_state_that_the_program_does_not_make_is_found():
    world = World()

    found = rehearsed(world, lambda world: world.opt.state.clear()).difference

    assert found is not None
    assert found.startswith("opt.state.0")


def test_a_program_that_draws_no_random_numbers_is_found():
    world = World()
    world.net[1].momentum = 0.0  # the mask changes no buffer

    def program():
        state = torch.get_rng_state()
        loss = world.train()
        torch.set_rng_state(state)
        return (loss,)

    rehearsal = whole(world, program)
    world.train()
    rehearsal.compare()

    assert rehearsal.difference == "torch's random state"


def test_a_program_that_draws_another_dropout_mask_is_found():
    world = trained_world()

    def program():
        torch.rand(1)
        return (world.train(),)

    rehearsal = whole(world, program)
    world.train()
    rehearsal.compare()

    assert rehearsal.difference is not None


def test_a_result_with_one_wrong_bit_is_found():
    world = trained_world()

    def program():
        loss = world.train().clone()
        flip(loss)
        return (loss,)

    rehearsal = whole(world, program)
    result = world.train()
    rehearsal.compare()
    rehearsal.compare_result(result)

    assert rehearsal.difference == "returned tensor 0"


def test_the_second_of_two_results_is_named():
    world = trained_world()

    rehearsal = whole(world, lambda: (world.train(),))
    loss = world.train()
    rehearsal.compare()
    rehearsal.compare_result({"a": [loss], "b": loss + 1})

    assert rehearsal.difference == "returned tensor 1"


def test_an_input_and_an_element_of_a_list_may_be_returned():
    world = trained_world()
    world.losses.append(torch.tensor(7.0))

    rehearsal = whole(world, lambda: (world.train(),), lists=[world.losses])
    world.train()
    rehearsal.compare()
    rehearsal.compare_result((world.weight, world.x, world.losses[0]))

    assert rehearsal.difference is None


def test_a_difference_of_the_state_is_named_before_one_of_the_result():
    world = trained_world()

    rehearsal = whole(world, lambda: (world.train(), flip(world.weight)))
    world.train()
    rehearsal.compare()
    rehearsal.compare_result(torch.tensor(0.5))

    assert rehearsal.difference == "0.weight"


def test_paths_that_the_step_writes_without_the_program_are_not_compared():
    def wrong(world):
        flip(world.weight.grad)
        flip(world.state["exp_avg"])

    found = rehearsed(trained_world(), wrong, besides={"0.weight.grad", "opt.state"}).difference

    assert found is None


def test_a_program_that_raises_leaves_nothing():
    world = trained_world()
    before, randomness = world.everything(), torch.get_rng_state()

    def program():
        world.train()
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        whole(world, program)

    assert_equal(world.everything(), before)
    assert torch.equal(torch.get_rng_state(), randomness)


def test_results_are_copied_before_everything_is_put_back():
    world = trained_world()

    rehearsal = whole(world, lambda: (world.train(), world.weight))
    world.train()
    rehearsal.compare()
    rehearsal.compare_result(world.weight.detach().clone())

    assert rehearsal.difference is None


def test_the_warnings_of_the_program_are_not_shown(recwarn):
    world = World()

    def program():
        world.schedule.step()  # before the optimizer: torch warns
        return (world.train(),)

    whole(world, program)

    assert not recwarn.list


# --- partial rehearsals


def until_the_update(net_of):
    """A program up to its first update: writes a buffer and gradients of what it is given."""

    def program(weight, mean, x):
        mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        loss = ((x - mean) @ weight).square().mean()
        loss.backward()
        net_of(weight, mean, x)

    return program


def nothing(weight, mean, x):
    pass


class Parts:
    """Real inputs of `until_the_update`."""

    def __init__(self):
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.mean, self.x = torch.zeros(3), torch.randn(5, 3)
        self.inputs = [self.weight, self.mean, self.x]

    def eager(self):
        until_the_update(nothing)(*self.inputs)


def partial(parts, wrong=nothing, **options):
    names = ["weight", "mean", "x"]
    return PartialRehearsal(until_the_update(wrong), parts.inputs, names, **options)


@pytest.mark.parametrize("has_grad", [False, True])
def test_a_partial_rehearsal_writes_no_input_and_no_random_state(has_grad):
    parts = Parts()
    parts.weight.grad = torch.ones(3, 2) if has_grad else None
    before, randomness = copy.deepcopy(parts.inputs), torch.get_rng_state()

    partial(parts, lambda *args: torch.rand(1))

    assert_equal([p.detach() for p in parts.inputs], [p.detach() for p in before])
    assert (parts.weight.grad is None) is not has_grad
    assert torch.equal(torch.get_rng_state(), randomness)


@pytest.mark.parametrize("wrong", ["", "weight", "mean", "x", "weight.grad", "weight.grad is None"])
def test_a_partial_rehearsal_finds_one_wrong_bit(wrong):
    def write(weight, mean, x):
        named = {"weight": weight, "mean": mean, "x": x, "weight.grad": weight.grad}
        if wrong == "weight.grad is None":
            weight.grad = None
        elif wrong:
            flip(named[wrong])

    parts = Parts()
    rehearsal = partial(parts, write)
    parts.eager()
    rehearsal.compare()

    assert rehearsal.difference == (wrong or None)


def test_only_the_first_comparison_of_a_partial_rehearsal_counts():
    parts = Parts()
    rehearsal = partial(parts)
    parts.eager()
    rehearsal.compare()

    with torch.no_grad():
        parts.weight.add_(1)  # the update
    rehearsal.compare()
    rehearsal.compare_result(torch.tensor(3.0))

    assert rehearsal.difference is None


def test_paths_may_be_left_out_of_a_partial_rehearsal():
    parts = Parts()
    rehearsal = partial(parts, lambda weight, mean, x: flip(weight.grad), besides={"weight.grad"})
    parts.eager()
    rehearsal.compare()

    assert rehearsal.difference is None


def test_copies_share_memory_and_have_strides_as_the_inputs_do():
    whole_memory = torch.arange(12.0)
    inputs = [whole_memory, whole_memory[4:].view(2, 4).t(), whole_memory[:1].expand(3)]
    seen = []

    PartialRehearsal(lambda *copies: seen.extend(copies), inputs, ["a", "b", "c"])

    seen[0][4] = 100.0
    assert seen[1][0, 0] == 100.0
    assert [c.stride() for c in seen] == [i.stride() for i in inputs]
    assert whole_memory[4] == 4.0


def test_a_copy_of_a_gradient_that_is_an_input_is_that_input():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    seen = []

    PartialRehearsal(lambda *copies: seen.extend(copies), [weight, weight.grad], ["w", "w.grad"])

    assert seen[0].grad is seen[1]
    assert seen[1] is not weight.grad
    assert seen[0].requires_grad


# --- what surrounds a rehearsal


def test_the_random_state_is_as_before_even_if_the_block_raises():
    before = torch.get_rng_state()

    def draws_and_raises():
        torch.rand(3)
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), restored_rng():
        draws_and_raises()

    assert torch.equal(torch.get_rng_state(), before)


class Owner:
    def __init__(self):
        self.calls = []

    def step(self, closure=None):
        self.calls.append("entered")
        if closure is not None:
            closure()
        self.calls.append("left")
        return "result"


def test_the_entry_of_a_method_is_reported_before_its_body_and_only_in_the_scope():
    owner = Owner()

    with at_entry_of(owner, "step", lambda: owner.calls.append("reported")):
        assert owner.step() == "result"
    owner.step()

    assert owner.calls == ["reported", "entered", "left", "entered", "left"]
    assert "step" not in vars(owner)


def test_with_a_closure_the_end_of_the_closure_is_reported():
    owner = Owner()

    with at_entry_of(owner, "step", lambda: owner.calls.append("reported")):
        owner.step(lambda: owner.calls.append("closure"))

    assert owner.calls == ["entered", "closure", "reported", "left"]


def test_a_method_that_the_instance_had_is_its_own_again():
    owner = Owner()
    owner.step = own = lambda: "own"

    with pytest.raises(ValueError, match="x"), at_entry_of(owner, "step", lambda: None):
        raise ValueError("x")

    assert vars(owner)["step"] is own


def test_nothing_is_reported_without_an_owner():
    with at_entry_of(None, None, lambda: pytest.fail("reported")):
        pass


def test_results_of_steps_besides_none_are_collected():
    one, two = Owner(), Owner()
    two.step = lambda: None

    with results_of([one, two]) as returned:
        one.step()
        two.step()
        one.step()

    assert returned == ["result", "result"]
    assert "step" not in vars(one)

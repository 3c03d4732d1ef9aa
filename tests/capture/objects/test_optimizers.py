"""Every optimizer of torch, optimizers of the user's own, and closures."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from support.harness import (
    Program,
    assert_captured,
    assert_captured_or_explained,
    assert_falls_back,
    draw,
    draw_labels,
    mlp,
    regression,
    same_as_eager,
)

NEEDS_MORE = {"Optimizer", "LBFGS", "SparseAdam"}  # abstract, a closure, sparse gradients
MATRICES_ONLY = {"Muon"}
NAMES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in NEEDS_MORE
)
VARIATIONS = {
    "SGD with Nesterov momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "SGD that maximises": ("SGD", {"lr": 0.01, "maximize": True, "weight_decay": 0.1}),
    "AMSGrad": ("Adam", {"lr": 0.1, "amsgrad": True}),
    "fused Adam": ("Adam", {"lr": 0.1, "fused": True}),
    "fused AdamW": ("AdamW", {"lr": 0.1, "fused": True}),
    "fused SGD": ("SGD", {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "Adam for each": ("Adam", {"lr": 0.1, "foreach": True}),
    "Adam one by one": ("Adam", {"lr": 0.1, "foreach": False}),
    "centred RMSprop": ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9}),
    "a learning rate in a tensor": ("Adam", {"lr": torch.tensor(0.1), "foreach": False}),
    "decoupled NAdam": ("NAdam", {"lr": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1}),
}


def trained_by(build, *, matrices=False):
    """A program that trains a perceptron with the optimizer that `build` makes."""

    def make():
        net = nn.Sequential(*[nn.Linear(4, 5, bias=not matrices), nn.Tanh()])
        net.append(nn.Linear(5, 2, bias=not matrices))
        optimizer = build(net.parameters())

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return Program(step, regression)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_of_torch_is_captured(name):
    kind = getattr(torch.optim, name)

    step = same_as_eager(trained_by(kind, matrices=name in MATRICES_ONLY))

    assert_captured(step)


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_variation_of_an_optimizer_is_exact(name):
    kind, options = VARIATIONS[name]

    def build(parameters):
        fresh = {k: v.clone() if torch.is_tensor(v) else v for k, v in options.items()}
        return getattr(torch.optim, kind)(parameters, **fresh)

    step = same_as_eager(trained_by(build))

    assert_captured_or_explained(step)


class SignDescent(torch.optim.Optimizer):
    """An optimizer of the user's, with state of its own and a counter in Python."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr, "beta": 0.5})
        self.updates = 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.updates += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["average"], state["step"] = torch.zeros_like(p), 0
                state["step"] += 1
                state["average"].lerp_(p.grad, 1 - group["beta"])
                p.add_(state["average"].sign(), alpha=-group["lr"] / state["step"])
        return loss


class NoisyDescent(torch.optim.SGD):
    """Draws random numbers and prints in its step."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(torch.randn_like(p), alpha=0.01)
        print("stepping")  # noqa: T201 - the test watches it
        return super().step(closure)


class CountingZero(torch.optim.SGD):
    """Overrides zero_grad."""

    cleared = 0

    def zero_grad(self, set_to_none=True):
        self.cleared += 1
        super().zero_grad(set_to_none)


class WithoutClosure(torch.optim.Optimizer):
    """Its step takes no arguments."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self):
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p -= 0.1 * p.grad


class Answering(WithoutClosure):
    """Its step returns what it is told to."""

    answer = 7

    def step(self):
        super().step()
        return self.answer


@pytest.mark.parametrize("kind", [SignDescent, NoisyDescent, CountingZero, WithoutClosure])
def test_an_optimizer_of_the_users_own_is_captured(kind):
    def build(parameters):
        return kind(parameters, lr=0.1) if issubclass(kind, torch.optim.SGD) else kind(parameters)

    assert_captured(same_as_eager(trained_by(build)))


def test_a_step_that_returns_a_value_is_a_named_fallback():
    def make():
        net = mlp()
        optimizer = Answering(net.parameters())

        def step(x, y):
            optimizer.zero_grad()
            functional.mse_loss(net(x), y).backward()
            return optimizer.step()

        return Program(step, regression)

    assert_falls_back(same_as_eager(make), "returns a value")


def test_a_step_that_begins_to_return_a_value_is_an_error_not_a_lost_value():
    net = mlp()
    optimizer = Answering(net.parameters())
    optimizer.answer = None

    @stepgraph.compile
    def step(x, y):
        optimizer.zero_grad()
        functional.mse_loss(net(x), y).backward()
        return optimizer.step()

    for index in range(3):
        step(*regression(index))
    optimizer.answer = 7

    with pytest.raises(stepgraph.errors.VerificationError, match="returned a value"):
        step(*regression(3))


class Scaled(torch.optim.SGD):
    """Reads an attribute of its own in step()."""

    factor = 1.0

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.1 * self.factor
        return super().step(closure)


@pytest.mark.parametrize(("kind", "captured"), [(Scaled, False), (torch.optim.SGD, True)])
def test_an_attribute_that_an_update_may_read_is_not_written_behind_it(kind, captured):
    def make():
        net = mlp()
        optimizer = kind(net.parameters(), lr=0.1)

        def step(x, y, factor):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.factor = factor
            optimizer.step()
            return loss

        return Program(step, lambda index: (*regression(index), 0.5 + index))

    step = same_as_eager(make)

    if captured:
        assert_captured(step)
    else:
        assert_falls_back(step, "writes an attribute")


def closing(build, *, draws=False):
    """A program that hands its optimizer a closure."""

    def make():
        net = nn.Sequential(*mlp(), *([nn.Dropout(0.2)] if draws else []))
        optimizer = build(net.parameters())
        seen = []

        def step(x, y):
            def closure():
                optimizer.zero_grad()
                loss = functional.mse_loss(net(x), y)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            seen.append(loss.item())
            return loss

        return Program(step, regression)

    return make


CLOSURE_KINDS = [name for name in NAMES if name not in MATRICES_ONLY]


@pytest.mark.parametrize("name", CLOSURE_KINDS)
def test_a_closure_is_exact_with_any_optimizer(name):
    step = same_as_eager(closing(getattr(torch.optim, name)), calls=5)

    assert_captured_or_explained(step)


@pytest.mark.parametrize("build", [SignDescent, NoisyDescent])
def test_a_closure_is_exact_with_an_optimizer_of_the_users_own(build):
    def make(parameters):
        return build(parameters, lr=0.1)

    assert_captured_or_explained(same_as_eager(closing(make)))


def test_a_closure_that_returns_its_loss_is_captured():
    def make():
        net = mlp()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

        def step(x, y):
            def closure():
                optimizer.zero_grad()
                loss = functional.mse_loss(net(x), y)
                loss.backward()
                return loss

            return optimizer.step(closure=closure)

        return Program(step, regression)

    assert_captured(same_as_eager(make))


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("draws", [False, True])
def test_lbfgs_runs_its_loop_over_the_closure(search, draws):
    def build(parameters):
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4, line_search_fn=search)

    assert_captured_or_explained(same_as_eager(closing(build, draws=draws)))


def test_lbfgs_calls_a_captured_closure():
    def make():
        net = mlp()
        optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=4)

        def step(x, y):
            def closure():
                optimizer.zero_grad()
                loss = functional.mse_loss(net(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_a_closure_that_fails_leaves_what_eager_leaves():
    def make():
        table = nn.Embedding(4, 2)
        optimizer = torch.optim.SGD(table.parameters(), lr=0.1)

        def step(index):
            def closure():
                optimizer.zero_grad()
                loss = table(index).pow(2).mean()
                loss.backward()
                return loss

            return optimizer.step(closure)

        return Program(step, lambda index: (torch.tensor([1, 9 if index == 5 else 2]),))

    same_as_eager(make)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # once a process
@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.SGD, torch.optim.Adagrad])
def test_sparse_gradients_are_exact(kind):
    def make():
        table = nn.Embedding(7, 3, sparse=True)
        optimizer = kind(table.parameters(), lr=0.1)

        def step(x):
            optimizer.zero_grad()
            loss = table(x).pow(2).mean()
            loss.backward()
            optimizer.step()
            return loss

        return Program(step, lambda index: (draw_labels(4, below=7, seed=index),))

    assert_captured_or_explained(same_as_eager(make))


def test_a_sparse_gradient_is_named_as_the_reason():
    def make():
        table, net = nn.Embedding(7, 3, sparse=True), nn.Linear(3, 1)
        sparse = torch.optim.SparseAdam(table.parameters(), lr=0.1)
        dense = torch.optim.Adam(net.parameters(), lr=0.1)

        def step(x):
            sparse.zero_grad()
            dense.zero_grad()
            loss = net(table(x)).pow(2).mean()
            loss.backward()
            sparse.step()
            dense.step()
            return loss

        return Program(step, lambda index: (draw_labels(4, below=7, seed=index),))

    step = same_as_eager(make)
    if not step.explain().captured:
        assert_falls_back(step, "sparse")


def test_two_optimizers_of_different_kinds_are_captured():
    def make():
        first, second = nn.Linear(4, 3), nn.Linear(3, 2)
        one = torch.optim.RMSprop(first.parameters(), lr=0.01)
        two = SignDescent(second.parameters())

        def step(x, y):
            loss = functional.mse_loss(second(first(x)), y)
            one.zero_grad()
            two.zero_grad()
            loss.backward()
            two.step()
            one.step()
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_a_parameter_that_gets_a_gradient_late_gets_its_state_late():
    def make():
        first, second = nn.Linear(4, 2), nn.Linear(4, 2)
        optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=0.1)

        def step(x, y, use_second):
            optimizer.zero_grad()
            out = first(x) + second(x) if use_second else first(x)
            loss = functional.mse_loss(out, y)
            loss.backward()
            optimizer.step()
            return loss

        return Program(step, lambda index: (*regression(index), index >= 4))

    assert_captured(same_as_eager(make, calls=10))


def test_an_optimizer_is_first_used_in_a_late_call():
    def make():
        net, late = mlp(), nn.Linear(2, 2)
        first = torch.optim.SGD(net.parameters(), lr=0.1)
        second = torch.optim.Adam(late.parameters(), lr=0.1)

        def step(x, y, both):
            first.zero_grad()
            second.zero_grad()
            loss = functional.mse_loss(late(net(x)), y)
            loss.backward()
            first.step()
            if both:
                second.step()
            return loss

        return Program(step, lambda index: (*regression(index), index >= 4))

    assert_captured(same_as_eager(make, calls=10))


def test_a_state_dict_taken_and_loaded_between_calls_is_that_of_eager():
    def make():
        net = mlp()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        saved = {}

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        def between(index):
            if index == 4:
                saved["net"] = {k: v.clone() for k, v in net.state_dict().items()}
                state = torch.save, optimizer.state_dict()
                saved["optimizer"] = {
                    "state": {
                        k: {n: t.clone() for n, t in v.items()}
                        for k, v in state[1]["state"].items()
                    },
                    "param_groups": [dict(g) for g in state[1]["param_groups"]],
                }
            if index == 7:
                net.load_state_dict(saved["net"])
                optimizer.load_state_dict(saved["optimizer"])

        return Program(step, regression, between=between, watch=saved)

    assert_captured(same_as_eager(make, calls=12))


def test_a_group_is_added_between_calls():
    def make():
        net, extra = mlp(), nn.Linear(2, 2)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(extra(net(x)), y)
            loss.backward()
            optimizer.step()
            return loss

        def between(index):
            if index == 4:
                optimizer.add_param_group({"params": list(extra.parameters()), "lr": 0.01})

        return Program(step, regression, between=between)

    assert_captured(same_as_eager(make, calls=10))


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "nesterov", "maximize"])
def test_a_hyper_parameter_is_edited_between_calls_without_another_capture(name):
    values = {"nesterov": [True, False], "maximize": [True, False]}

    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        def between(index):
            choice = values.get(name, [0.01 * (index + 1), 0.02])
            optimizer.param_groups[0][name] = choice[index % 2]

        return Program(step, regression, between=between)

    step = same_as_eager(make, calls=10)
    assert_captured(step)
    assert step.explain().captures <= 2


def test_the_optimizer_is_replaced_between_calls():
    def make():
        class Learner:
            pass

        learner = Learner()
        learner.net = mlp()
        learner.optimizer = torch.optim.SGD(learner.net.parameters(), lr=0.1)

        def step(x, y):
            learner.optimizer.zero_grad()
            loss = functional.mse_loss(learner.net(x), y)
            loss.backward()
            learner.optimizer.step()
            return loss

        def between(index):
            if index == 4:
                learner.optimizer = torch.optim.Adam(learner.net.parameters(), lr=0.01)

        return Program(step, regression, between=between)

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_momentum_buffers_edited_by_hand_are_used():
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        def between(index):
            if index == 4:
                for state in optimizer.state.values():
                    state["momentum_buffer"] = draw(*state["momentum_buffer"].shape)
            if index == 6:
                optimizer.state.clear()

        return Program(step, regression, between=between)

    assert_captured(same_as_eager(make, calls=10))

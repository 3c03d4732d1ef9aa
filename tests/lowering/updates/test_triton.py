"""Updates in the Triton kernels, in the interpreter, against the optimizer's own step on a twin."""

import copy
import functools
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RMSprop

from stepgraph.effects import OPS
from stepgraph.lowering import NotFused, Obstacle, emit
from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.updates.triton import KernelLaunch, KernelUpdate, kernel_misfit

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # triton 3.6
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FITTING = [
    AdamW,
    functools.partial(AdamW, amsgrad=True, maximize=True),
    functools.partial(AdamW, capturable=False, lr=torch.tensor(0.01)),
    functools.partial(SGD, momentum=0.9, nesterov=True),
    SGD,
    RMSprop,
    NAdam,
    Adagrad,
]


class PairedOptimizers:
    """Two equal lists of parameters: one is updated by the kernels, one by `step()`."""

    def __init__(self, make):
        torch.manual_seed(0)
        values = [torch.randn(5, 7), torch.randn(3)]
        self.params, self.theirs = (
            [nn.Parameter(v.clone().to(DEVICE)) for v in values] for _ in range(2)
        )
        self.mine, self.own = (_optimizer(make, p) for p in (self.params, self.theirs))
        self.update = KernelUpdate(self.mine)
        self.steps = 0

    def gradients(self, scale=1.0):
        torch.manual_seed(self.steps)
        self.steps += 1
        for ours, theirs in zip(self.params, self.theirs, strict=True):
            ours.grad = torch.randn(ours.shape).to(DEVICE) * scale
            theirs.grad = ours.grad.clone()

    def step(self, times=1):
        for _ in range(times):
            self.gradients()
            self.update()
            self.own.step()

    def close(self):
        ours, theirs = self.mine.state_dict(), self.own.state_dict()
        for index, state in ours["state"].items():
            assert state.keys() == theirs["state"][index].keys()
            for name, value in state.items():
                other = theirs["state"][index][name]
                assert value == other if value is None else is_close(value.cpu(), other.cpu())
        for ours, theirs in zip(self.params, self.theirs, strict=True):
            assert is_close(ours.detach(), theirs.detach())
            assert is_close(ours.grad, theirs.grad)


def _optimizer(make, params):
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}]
    return make(groups) if "lr" in getattr(make, "keywords", {}) else make(groups, lr=0.01)


@pytest.mark.parametrize("make", FITTING)
def test_the_kernels_leave_what_step_leaves(make):
    twins = PairedOptimizers(make)

    twins.step(3)

    assert twins.update.refusal is None
    assert twins.update.tried
    twins.close()


def test_without_state_the_own_step_runs_and_makes_it():
    twins = PairedOptimizers(AdamW)

    twins.step()

    assert twins.update.refusal == NotFused(Obstacle.NO_STATE)
    twins.close()


def test_a_schedule_is_read_per_call_and_builds_no_table_again(monkeypatch):
    twins = PairedOptimizers(AdamW)
    twins.step(3)
    (made,) = twins.update._made.values()
    monkeypatch.setattr(made, "_build", None)

    for lr in (0.5, 0.25):
        for optimizer in (twins.mine, twins.own):
            optimizer.param_groups[0]["lr"] = lr
        twins.gradients()
        for ours, held in zip(twins.params, made.targets, strict=True):
            held.grad.copy_(ours.grad)
            ours.grad = held.grad
        twins.update()
        twins.own.step()

    assert list(twins.update._made.values()) == [made]
    assert twins.update.refusal is None
    twins.close()


def test_a_factor_clips_gradients_inside_the_update():
    twins = PairedOptimizers(AdamW)
    twins.step(2)

    for value in (0.5, 0.125):
        factor = torch.tensor(value, device=DEVICE)
        twins.gradients()
        twins.update.clipped(factor)
        for param in twins.theirs:
            param.grad.mul_(factor)
        twins.own.step()

    assert twins.update.refusal is None
    twins.close()


def test_parts_of_an_update_are_the_whole():
    twins = PairedOptimizers(AdamW)
    twins.step()
    first = twins.update.part([1], last=False)
    last = twins.update.part([0], last=True)

    for _ in range(3):
        twins.gradients()
        first()
        last()
        twins.own.step()

    assert twins.update.why_not() in (None, NotFused(Obstacle.NO_STATE))
    assert first.tried
    assert last.tried
    twins.close()


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scaler_skips_on_the_device_what_it_skips_in_eager(unscaled):
    twins = PairedOptimizers(AdamW)
    twins.step()
    scalers = [torch.amp.GradScaler(DEVICE, init_scale=8.0, growth_interval=2) for _ in range(2)]
    for scaler in scalers:
        scaler.scale(torch.ones((), device=DEVICE))

    for value in (1.0, 1.0, float("inf"), 1.0):
        twins.gradients(8.0 * value)
        for scaler, optimizer in zip(scalers, (twins.mine, twins.own), strict=True):
            if unscaled:
                scaler.unscale_(optimizer)
        twins.update.scaled(scalers[0])
        scalers[1].step(twins.own)
        for scaler in scalers:
            scaler.update()

    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert "step" not in vars(twins.mine)
    assert "_step_supports_amp_scaling" not in vars(twins.mine)
    state = [twins.own.state[p]["step"].item() for p in twins.theirs]
    assert [twins.mine.state[p]["step"].item() for p in twins.params] == state == [4, 4]
    for ours, theirs in zip(twins.params, twins.theirs, strict=True):
        assert is_close(ours.detach(), theirs.detach())


def test_a_scaled_update_after_the_trial_asks_the_host_nothing(monkeypatch):
    twins = PairedOptimizers(AdamW)
    twins.step(2)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0)
    scaler.scale(torch.ones((), device=DEVICE))
    twins.gradients(8.0)
    monkeypatch.setattr(twins.mine, "step", None)  # the own step is not what runs
    twins.update._own_step = None

    monkeypatch.setattr(torch.Tensor, "item", None)
    twins.update.scaled(scaler)

    assert twins.update.refusal is None


def test_state_that_was_loaded_is_used():
    twins = PairedOptimizers(AdamW)
    twins.step(3)
    saved = copy.deepcopy(twins.own.state_dict())
    twins.step(2)

    for optimizer in (twins.mine, twins.own):
        optimizer.load_state_dict(copy.deepcopy(saved))
    twins.step()

    assert twins.update.refusal is None
    assert twins.mine.state_dict()["state"][0]["step"] == 4
    twins.close()


def test_a_gradient_that_the_kernels_cannot_take_is_left_to_step():
    twins = PairedOptimizers(AdamW)
    twins.step(2)

    twins.gradients()
    for params in (twins.params, twins.theirs):
        params[0].grad = params[0].grad.t().contiguous().t()
    twins.update()
    twins.own.step()

    assert "strides are [1, 5]" in str(twins.update.refusal)
    twins.close()
    twins.step()
    assert twins.update.refusal is None


def test_kernels_that_differ_from_step_are_never_used(monkeypatch):
    twins = PairedOptimizers(AdamW)
    twins.step()
    launch = KernelLaunch.launch

    def wrong(self, *args):
        launch(self, *args)
        self._targets[0].param.add_(0.1)

    monkeypatch.setattr(KernelLaunch, "launch", wrong)
    twins.step(3)

    assert twins.update.refusal == NotFused(Obstacle.KERNEL_DIFFERS)
    assert not twins.update.tried
    twins.close()


def test_kernels_that_fail_in_the_trial_are_never_used(monkeypatch):
    twins = PairedOptimizers(AdamW)
    twins.step()

    def fail(self, *args):
        raise RuntimeError("out of resources")

    monkeypatch.setattr(KernelLaunch, "launch", fail)
    twins.step(2)

    assert str(twins.update.refusal) == "the fused kernel fails: out of resources"
    twins.close()


class OwnAdam(Adam):
    """An optimizer of the user's."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (OwnAdam, "no Triton kernel for OwnAdam"),
        (functools.partial(AdamW, foreach=True), "its options choose another implementation"),
        (functools.partial(Adam, differentiable=True), "differentiable"),
        (functools.partial(Adam, capturable=False), "None"),
    ],
)
def test_what_does_not_fit_is_named(make, reason):
    optimizer = make([nn.Parameter(torch.ones(3, device=DEVICE))], lr=0.1)

    assert str(kernel_misfit(optimizer, interpreted=True)) == reason


def moved_parameter(twins):
    twins.params[0].data = twins.params[0].data.clone()


def replaced_state(twins):
    state = twins.mine.state[twins.params[1]]
    state["exp_avg"] = state["exp_avg"].clone()


def loaded_state(twins):
    twins.mine.load_state_dict(copy.deepcopy(twins.mine.state_dict()))


def hooked(twins):
    twins.mine.register_step_post_hook(lambda *_: None)


def other_option(twins):
    twins.mine.param_groups[0]["amsgrad"] = True


@pytest.mark.parametrize(
    "change", [moved_parameter, replaced_state, loaded_state, hooked, other_option]
)
def test_what_was_prepared_holds_until_something_moves(change):
    twins = PairedOptimizers(AdamW)
    twins.step(2)
    grads = {id(p): torch.zeros_like(p) for p in twins.params}
    first = twins.update.prepared(clipped=False, grads=grads)

    twins.mine.param_groups[0]["lr"] = 0.5
    assert twins.update.prepared(clipped=False, grads=grads) is first
    (table, *_) = twins.update._made.values()
    assert table._hyper[0, 2] == 0.5
    change(twins)

    assert twins.update.prepared(clipped=False, grads=grads) is not first


def test_an_update_beside_a_prepared_one_does_not_lend_it_its_gradients():
    twins = PairedOptimizers(AdamW)
    twins.step(2)
    grads = {id(p): torch.full_like(p, 3.0) for p in twins.params}
    twins.update.prepared(clipped=False, grads=grads)
    twins.step(1)  # the ordinary program, from `.grad`: a profile runs it, for one

    launch = twins.update.prepared(clipped=False, grads=grads)
    launch.launch(None)
    for ours, theirs in zip(twins.params, twins.theirs, strict=True):
        ours.grad, theirs.grad = grads[id(ours)], grads[id(ours)].clone()
    twins.own.step()

    twins.close()


def test_float64_is_left_to_step():
    optimizer = Adam([nn.Parameter(torch.ones(3, dtype=torch.float64, device=DEVICE))])

    assert "float32, bfloat16 or float16" in str(kernel_misfit(optimizer, interpreted=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the parameters would be on a GPU")
def test_parameters_on_a_cpu_are_for_tests_only():
    found = kernel_misfit(Adam([nn.Parameter(torch.ones(3))]))

    assert found == NotFused(Obstacle.NOT_ON_GPU)


def test_without_triton_the_reason_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "stepgraph_kernels.catalogue", None)

    reason = kernel_misfit(Adam([nn.Parameter(torch.ones(3))]), interpreted=True)

    assert reason.obstacle is Obstacle.NO_TRITON
    assert str(reason).startswith("the Triton kernels cannot be imported")


def test_a_program_gives_a_scaled_step_to_the_kernels():
    class Update:
        def scaled(self, scaler):
            seen.append(scaler)

    seen, scaler, graph = [], object(), Graph()
    param = graph.placeholder("p")
    graph.call_function(OPS.scaled_step.default, ([param], [], 1, 2))
    graph.output(())
    subjects = {1: SimpleNamespace(value=scaler), 2: SimpleNamespace(value=object())}

    emit(GraphModule({}, graph), subjects, updates={2: Update()}).function(torch.ones(1))

    assert seen == [scaler]

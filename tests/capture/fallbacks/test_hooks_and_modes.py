"""Hooks, and modes around a call."""

import itertools
import warnings

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn import functional
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    register_optimizer_step_post_hook,
)

import stepgraph
from capture.fallbacks.world import World, plain, program
from support.harness import (
    assert_captured_or_explained,
    assert_falls_back,
    regression,
    same_as_eager,
)


def scale_gradient(grad):
    return grad * 2


def hook_on_a_parameter(world):
    return world.net[0].weight.register_hook(scale_gradient)


def hook_after_accumulation(world):
    def triple(parameter):
        parameter.grad.mul_(3)

    return world.net[0].weight.register_post_accumulate_grad_hook(triple)


def hook_before_a_forward(world):
    return world.net[2].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def hook_after_a_forward(world):
    return world.net.register_forward_hook(lambda module, args, out: out.add(1))


def hook_on_a_module_backward(world):
    return world.net[2].register_full_backward_hook(
        lambda module, grad_in, grad_out: tuple(g * 2 for g in grad_in)
    )


def hook_before_a_module_backward(world):
    return world.net[2].register_full_backward_pre_hook(
        lambda module, grad_out: tuple(g * 2 for g in grad_out)
    )


def hook_before_a_step(world):
    return world.opt.register_step_pre_hook(
        lambda opt, args, kwargs: [p.grad.mul_(3) for p in opt.param_groups[0]["params"]] and None
    )


def hook_after_a_step(world):
    return world.opt.register_step_post_hook(lambda *_: world.seen.append(len(world.seen)))


def hook_on_every_forward(world):
    return nn.modules.module.register_module_forward_hook(
        lambda module, args, out: out * 1.5 if isinstance(module, nn.Tanh) else None
    )


def hook_on_every_step(world):
    return register_optimizer_step_post_hook(lambda *_: world.seen.append(len(world.seen)))


HOOKS = [
    hook_on_a_parameter,
    hook_after_accumulation,
    hook_before_a_forward,
    hook_after_a_forward,
    hook_on_a_module_backward,
    hook_before_a_module_backward,
    hook_before_a_step,
    hook_after_a_step,
]


def hooked(register, first, last):
    """A program that has a hook from the call `first` to before the call `last`."""
    handles = {}

    def between(world, index):
        if index == first:
            handles[world] = register(world)
        if index == last:
            handles[world].remove()

    return program(plain, between=between)


@pytest.fixture
def _no_global_hooks():
    yield
    nn.modules.module._global_forward_hooks.clear()
    _global_optimizer_post_hooks.clear()


@pytest.mark.parametrize("register", HOOKS)
def test_a_hook_registered_before_the_first_call_is_not_lost(register):
    assert_captured_or_explained(same_as_eager(hooked(register, 0, None), calls=6))


@pytest.mark.parametrize("register", HOOKS)
def test_a_hook_registered_after_the_capture_is_not_lost(register):
    step = same_as_eager(hooked(register, 4, 7), calls=10)

    assert_captured_or_explained(step)
    assert step.explain().captured


def weights_of(compiler, register, calls):
    """Final weights and what a hook has seen, of a run of its own with a global hook."""
    torch.manual_seed(0)
    world = World()
    step = compiler(lambda x, y: plain(world, x, y))
    for index in range(calls):
        if index == 4:
            handle = register(world)
        step(*regression(index))
    handle.remove()
    step(*regression(calls))
    return [p.detach().clone() for p in world.net.parameters()], world.seen


@pytest.mark.usefixtures("_no_global_hooks")
@pytest.mark.parametrize("register", [hook_on_every_forward, hook_on_every_step])
def test_a_global_hook_registered_after_the_capture_is_not_lost(register):
    silent = stepgraph.compile(on_fallback="silent")

    eager, seen = weights_of(lambda step: step, register, 7)
    compiled, found = weights_of(silent, register, 7)

    assert all(map(torch.equal, eager, compiled))
    assert found == seen


def hooks_an_activation(world, x, y):
    hidden = world.net[1](world.net[0](x))
    hidden.register_hook(scale_gradient)
    return world.update(functional.mse_loss(world.net[2](hidden), y))


def retains_a_gradient(world, x, y):
    hidden = world.net[1](world.net[0](x))
    hidden.retain_grad()
    loss = world.update(functional.mse_loss(world.net[2](hidden), y))
    return loss, hidden.grad


def registers_and_removes(world, x, y):
    handle = world.net[0].weight.register_hook(scale_gradient)
    loss = world.update(world.loss(x, y))
    handle.remove()
    return loss


def watches_modules(world, x, y):
    handle = world.net[0].register_forward_hook(lambda m, args, out: world.seen.append(out.mean()))
    loss = world.update(world.loss(x, y))
    handle.remove()
    return loss


@pytest.mark.parametrize(
    "body", [hooks_an_activation, retains_a_gradient, registers_and_removes, watches_modules]
)
def test_a_hook_set_in_the_step_is_not_lost(body):
    assert_captured_or_explained(same_as_eager(program(body)))


def with_gradients_inside(world, x, y):
    with torch.enable_grad():
        return world.update(world.loss(x, y))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_that_trains_without_gradients_raises_as_eager_does(mode):
    same_as_eager(program(plain, around=mode), calls=4)


def test_a_step_called_under_no_grad_runs_eagerly():
    step = same_as_eager(program(with_gradients_inside, around=torch.no_grad))

    assert_falls_back(step, "no_grad")


def test_a_captured_step_called_under_no_grad_raises_as_eager_does():
    def make():
        inner = program(plain)()
        count = itertools.count()
        inner.around = lambda: torch.set_grad_enabled(next(count) not in (4, 5))
        return inner

    step = same_as_eager(make)

    assert step.explain().captured


def test_a_captured_step_called_under_autocast_computes_in_autocast():
    def make():
        inner = program(plain)()
        count = itertools.count()
        inner.around = lambda: torch.autocast(
            "cpu", dtype=torch.bfloat16, enabled=next(count) in (4, 5, 6)
        )
        return inner

    assert_captured_or_explained(same_as_eager(make, calls=9))


def test_a_captured_step_sees_another_default_dtype():
    def body(world, x, y):
        return world.update(world.loss(x, y) * torch.ones(2).sum().float()), torch.zeros(1)

    def between(world, index):
        torch.set_default_dtype(torch.float64 if index in (4, 5) else torch.float32)

    try:
        assert_captured_or_explained(same_as_eager(program(body, between=between)))
    finally:
        torch.set_default_dtype(torch.float32)


class Doubling(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 2 if function is functional.mse_loss else result


class Negating(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return -result if function is torch.ops.aten.tanh.default else result


MODES = [(Doubling, "function mode"), (Negating, "dispatch mode")]


@pytest.mark.parametrize(("mode", "word"), MODES)
@pytest.mark.parametrize("first", [0, 4])
def test_a_mode_of_the_user_around_the_call_is_honoured(mode, word, first):
    def make():
        inner = program(plain)()
        count = itertools.count()

        def around():
            return mode() if next(count) >= first else torch.enable_grad()

        inner.around = around
        return inner

    assert_falls_back(same_as_eager(make), word)


def test_saved_tensor_hooks_around_the_call_are_honoured():
    def make():
        inner = program(plain)()
        packed = inner.watch.seen

        def pack(tensor):
            packed.append(len(packed))
            return tensor * 2

        inner.around = lambda: torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        return inner

    assert_captured_or_explained(same_as_eager(make))


def test_anomaly_mode_around_the_call_is_honoured():
    def body(world, x, y):
        return world.update((world.loss(x, y) * 0).sqrt())

    def make():
        inner = program(body)()
        inner.around = lambda: torch.autograd.set_detect_anomaly(True)
        return inner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same_as_eager(make, calls=4)

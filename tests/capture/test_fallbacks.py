"""What cannot be captured runs eagerly, exactly, and says why."""

import itertools
import logging
import random
import warnings
from collections import Counter

import numpy as np
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
from harness import (
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
from stepgraph.errors import ConfigurationError


class World:
    """A perceptron, its optimizer, and what the steps of this file use beside them."""

    def __init__(self):
        self.net = mlp()
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.losses, self.seen = [], []
        self.generator = torch.Generator().manual_seed(3)
        self.numpy = np.random.default_rng(3)
        self.random = random.Random(3)

    def loss(self, x, y):
        return functional.mse_loss(self.net(x), y)

    def update(self, loss):
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss


def program(body, batch=regression, between=lambda world, index: None, **more):
    """A program whose step is `body(world, x, y)`."""

    def make():
        world = World()

        def step(x, y):
            return body(world, x, y)

        return Program(
            step, batch, watch=world, between=lambda index: between(world, index), **more
        )

    return make


# --- Python that looks at values


def branch_on_a_loss(world, x, y):
    loss = world.loss(x, y)
    return world.update(loss * 0.5 if loss > 1.2 else loss)


def branch_on_an_item(world, x, y):
    loss = world.loss(x, y)
    if loss.item() > 1.2:
        return None
    return world.update(loss)


def loop_until_small(world, x, y):
    scale = x.abs().sum()
    while scale > 4:
        scale = scale / 2
    return world.update(world.loss(x, y) * scale)


def ternary_on_finiteness(world, x, y):
    loss = world.update(world.loss(x, y))
    return "finite" if torch.isfinite(loss).all() else "broken"


def range_over_a_tensor(world, x, y):
    loss = world.loss(x, y)
    for _ in range(int(x.sum().abs()) % 3):
        loss = loss + world.loss(x, y)
    return world.update(loss)


def dictionary_keyed_by_a_value(world, x, y):
    scale = {0: 1.0, 1: 2.0}[int(x.sum() > 0)]
    return world.update(world.loss(x, y) * scale)


def compare_with_none_and_a_value(world, x, y):
    loss = world.loss(x, y)
    best = min([loss.detach(), *world.seen])
    world.seen[:] = [best]
    return world.update(loss)


LOOKING = {
    function.__name__: function
    for function in [
        branch_on_a_loss,
        branch_on_an_item,
        loop_until_small,
        ternary_on_finiteness,
        range_over_a_tensor,
        dictionary_keyed_by_a_value,
        compare_with_none_and_a_value,
    ]
}


@pytest.mark.parametrize("name", LOOKING)
def test_python_that_looks_at_values_runs_eagerly(name):
    step = same_as_eager(program(LOOKING[name]))

    assert_falls_back(step, "data", "value", "branch", "tensor", "list")
    assert not step.explain().captured


def picks_rows(world, x, y):
    keep = x.sum(1) > 0
    return world.update(functional.mse_loss(world.net(x[keep]), y[keep]))


def counts_values(world, x, y):
    values, counts = torch.unique((x > 0).long().sum(1), return_counts=True)
    return world.update(world.loss(x, y) * counts.float().mean()), values


@pytest.mark.parametrize("body", [picks_rows, counts_values])
def test_shapes_that_depend_on_values_are_captured(body):
    step = same_as_eager(program(body))

    if body is picks_rows and torch.__version__.startswith("2.11."):
        # the loss broadcasts two sizes, and this torch asks whether one of them is 1
        assert_falls_back(step, "data-dependent")
    else:
        assert_captured(step)


# --- randomness of the host


def of_numpy(world, x, y):
    return world.update(world.loss(x, y) * float(np.random.rand()))


def of_a_numpy_generator(world, x, y):
    return world.update(world.loss(x, y) * world.numpy.random())


def of_random(world, x, y):
    return world.update(world.loss(x, y) * random.random())


def of_a_random_instance(world, x, y):
    return world.update(world.loss(x, y) * world.random.uniform(0.5, 2))


def of_a_choice(world, x, y):
    return world.update(world.loss(x, y) * random.choice([0.5, 2.0]))


def of_a_torch_generator(world, x, y):
    return world.update(world.loss(x + torch.rand(4, generator=world.generator), y))


def of_a_reseeded_generator(world, x, y):
    world.generator.manual_seed(1)
    return world.update(world.loss(x + torch.rand(4, generator=world.generator), y))


def of_a_seed_in_the_step(world, x, y):
    torch.manual_seed(len(x))
    return world.update(world.loss(x + torch.rand(4), y))


def of_a_state_put_back(world, x, y):
    state = torch.get_rng_state()
    noise = torch.rand(4)
    torch.set_rng_state(state)
    return world.update(world.loss(x + noise + torch.rand(4), y))


def of_a_fork(world, x, y):
    with torch.random.fork_rng():
        noise = torch.rand(4)
    return world.update(world.loss(x + noise, y))


HOST_RANDOMNESS = [
    of_numpy,
    of_a_numpy_generator,
    of_random,
    of_a_random_instance,
    of_a_choice,
    of_a_torch_generator,
    of_a_reseeded_generator,
    of_a_seed_in_the_step,
    of_a_state_put_back,
    of_a_fork,
]


@pytest.mark.parametrize("body", HOST_RANDOMNESS)
def test_randomness_of_the_host_runs_eagerly(body):
    step = same_as_eager(program(body))

    assert_falls_back(step, "random", "generator", "seed", "rng", "numpy")
    assert not step.explain().captured


# --- deleted attributes


def test_a_gradient_that_is_deleted_runs_eagerly():
    def deletes(world, x, y):
        loss = world.update(world.loss(x, y))
        del world.net[0].weight.grad
        return loss

    assert_falls_back(same_as_eager(program(deletes)), "deletes an attribute of a tensor")


# --- hooks


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


def plain(world, x, y):
    return world.update(world.loss(x, y))


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


# --- modes around the call


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


# --- tensors of another kind


class Marked(torch.Tensor):
    """A tensor subclass that doubles every sum of squares."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result * 2 if function is functional.mse_loss else result


def marked_batch(index):
    x, y = regression(index)
    return x.as_subclass(Marked), y


def test_a_batch_of_a_tensor_subclass_runs_exactly():
    step = same_as_eager(program(plain, batch=marked_batch))

    assert_falls_back(step, "subclass")


def test_a_batch_that_becomes_a_tensor_subclass_runs_exactly():
    def batch(index):
        return marked_batch(index) if index in (4, 5) else regression(index)

    assert_captured_or_explained(same_as_eager(program(plain, batch=batch)))


def test_a_parameter_of_a_tensor_subclass_runs_exactly():
    class Weight(nn.Parameter):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs or {})
            return result * 2 if function is functional.linear else result

    def make():
        world = World()
        world.net[2].weight = Weight(world.net[2].weight.detach().clone())
        world.opt = torch.optim.SGD(world.net.parameters(), lr=0.1)
        return Program(lambda x, y: plain(world, x, y), regression, watch=world)

    assert_captured_or_explained(same_as_eager(make))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.SparseAdam])
def test_sparse_gradients_run_exactly(optimizer):
    def make():
        net = nn.EmbeddingBag(9, 3, sparse=True, mode="sum")
        opt = optimizer(net.parameters(), lr=0.1)

        def step(tokens, y):
            opt.zero_grad()
            loss = functional.mse_loss(net(tokens), y)
            loss.backward()
            opt.step()
            return loss

        def batch(index):
            return draw_labels(4, 5, below=9, seed=index), draw(4, 3, seed=index)

        return Program(step, batch)

    assert_falls_back(same_as_eager(make), "sparse")


def test_a_batch_that_is_sparse_runs_exactly():
    def body(world, x, y):
        return world.update(functional.mse_loss(torch.sparse.mm(x, world.net[0].weight.t()), y))

    def batch(index):
        return draw(6, 4, seed=index).relu().to_sparse(), draw(6, 5, seed=index)

    assert_captured_or_explained(same_as_eager(program(body, batch=batch)))


def test_a_batch_of_numpy_arrays_runs_exactly():
    def body(world, x, y):
        return world.update(world.loss(torch.from_numpy(x), torch.as_tensor(y)))

    def batch(index):
        return tuple(t.numpy() for t in regression(index))

    assert_captured_or_explained(same_as_eager(program(body, batch=batch)))


def test_a_computation_in_numpy_runs_exactly():
    def body(world, x, y):
        scale = np.tanh(x.numpy()).sum()
        return world.update(world.loss(x, y) * float(scale))

    assert_captured_or_explained(same_as_eager(program(body)))


# --- results with a graph that the caller may still use


def live_results(compiler, body, use):
    torch.manual_seed(0)
    world = World()
    step = compiler(lambda x, y: body(world, x, y))
    for index in range(6):
        use(world, step(*regression(index)))
    weights = [p.detach().clone() for p in world.net.parameters()]
    return weights, [None if p.grad is None else p.grad.clone() for p in world.net.parameters()]


def only_a_forward(world, x, y):
    return world.loss(x, y)


def forward_beside_an_update(world, x, y):
    world.update(world.loss(x, y))
    return {"next": [world.loss(x, y)]}


def graph_retained(world, x, y):
    loss = world.loss(x, y)
    world.opt.zero_grad()
    loss.backward(retain_graph=True)
    return loss


def gradient_with_a_graph(world, x, y):
    loss = world.loss(x, y)
    (gradient,) = torch.autograd.grad(loss, [world.net[0].weight], create_graph=True)
    return gradient.square().sum()


def trained_outside(world, result):
    while not isinstance(result, torch.Tensor):
        result = result["next"] if isinstance(result, dict) else result[0]
    world.opt.zero_grad()
    result.backward()
    world.opt.step()


@pytest.mark.parametrize(
    "body", [only_a_forward, forward_beside_an_update, graph_retained, gradient_with_a_graph]
)
def test_a_result_with_a_live_graph_can_be_backpropagated_by_the_caller(body):
    steps = []

    def compiler(step):
        steps.append(stepgraph.compile(step, on_fallback="silent"))
        return steps[-1]

    eager = live_results(lambda step: step, body, trained_outside)
    compiled = live_results(compiler, body, trained_outside)

    assert all(map(torch.equal, eager[0], compiled[0]))
    assert all(map(torch.equal, eager[1], compiled[1]))
    assert_falls_back(steps[0], "live graph")


def test_of_a_live_graph_the_line_that_made_the_value_is_told():
    scale = torch.ones((), requires_grad=True)
    world = World()

    @stepgraph.compile(on_fallback="silent")
    def step(x, y):
        loss = world.loss(x, y)
        world.update(loss)
        return loss, scale.exp()

    for index in range(2):
        step(*regression(index))

    (fallback,) = step.explain().fallbacks
    line = step.__wrapped__.__code__.co_firstlineno + 4
    assert fallback.at == f"{__file__}:{line}"
    assert "detach" in fallback.hint


def test_an_error_in_the_step_is_told_by_eager_alone(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    world = World()
    step = stepgraph.compile(lambda x, y: world.update(world.loss(x, y)), on_fallback="silent")
    x, y = regression(0)
    step(x, y)
    step(x, y)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        step(x[:, :2], y)

    assert not caplog.records


def test_a_live_graph_kept_in_a_list_of_the_user_is_not_detached():
    def body(world, x, y):
        loss = world.loss(x, y)
        world.losses.append(loss)

    def use(world, result):
        if len(world.losses) == 2:
            world.opt.zero_grad()
            sum(world.losses).backward()
            world.opt.step()
            world.losses.clear()

    eager = live_results(lambda step: step, body, use)
    compiled = live_results(stepgraph.compile(on_fallback="silent"), body, use)

    assert all(map(torch.equal, eager[0], compiled[0]))
    assert all(map(torch.equal, eager[1], compiled[1]))


# --- state of Python that a trace would freeze


def reads_a_list(world, x, y):
    loss = world.update(world.loss(x, y))
    world.losses.append(loss.detach())
    return sum(world.losses) / len(world.losses)


def reads_the_end_of_a_list(world, x, y):
    scale = world.losses[-1] if world.losses else torch.ones(())
    loss = world.update(world.loss(x, y) * scale)
    world.losses.append(loss.detach())


def pops_from_a_list(world, x, y):
    loss = world.update(world.loss(x, y))
    world.losses.append(loss.detach())
    return world.losses.pop(0) if len(world.losses) > 3 else None


def sorts_a_list(world, x, y):
    world.losses.append(float(len(world.losses) % 3))
    world.losses.sort()
    return world.update(world.loss(x, y) * world.losses[0])


READING = [reads_a_list, reads_the_end_of_a_list, pops_from_a_list, sorts_a_list]


@pytest.mark.parametrize("body", READING)
def test_a_list_that_the_step_reads_is_exact(body):
    step = same_as_eager(program(body), calls=12)

    assert_captured_or_explained(step)
    assert step.explain().captures <= 8


def from_an_iterator(source):
    """A step that draws its own batches from `source`."""

    def make():
        world = World()
        batches = iter(source())

        def step():
            return plain(world, *next(batches))

        return Program(step, watch=world)

    return make


def batches():
    for index in range(20):
        yield regression(index)


ITERATORS = {
    "generator": batches,
    "list": lambda: list(batches()),
    "map": lambda: map(regression, range(20)),
    "zip": lambda: zip(*zip(*batches(), strict=True), strict=True),
    "data loader": lambda: torch.utils.data.DataLoader(list(batches()), batch_size=None),
}


@pytest.mark.parametrize("name", ITERATORS)
def test_a_step_that_fetches_its_own_batch_is_exact(name):
    assert_captured_or_explained(same_as_eager(from_an_iterator(ITERATORS[name])))


def test_an_iterator_that_counts_calls_is_exact():
    def make():
        world, count = World(), itertools.count()

        def step(x, y):
            return plain(world, x * next(count), y)

        return Program(step, regression, watch=world)

    assert_captured_or_explained(same_as_eager(make, calls=12))


def counts_in_a_counter(world, x, y):
    world.counter["calls"] += 1
    return world.update(world.loss(x, y))


def counts_in_an_attribute(world, x, y):
    world.calls = getattr(world, "calls", 0) + 1
    return world.update(world.loss(x, y) * (1.0 + world.calls % 3))


def counts_in_a_dict(world, x, y):
    world.numbers["calls"] = world.numbers.get("calls", 0) + 1
    return world.update(world.loss(x, y) / world.numbers["calls"])


@pytest.mark.parametrize("body", [counts_in_a_counter, counts_in_an_attribute, counts_in_a_dict])
def test_counters_of_the_user_count(body):
    def make():
        inner = program(body)()
        inner.watch.counter, inner.watch.numbers = Counter(), {}
        return inner

    assert_captured_or_explained(same_as_eager(make, calls=12))


def test_a_counter_in_a_closure_counts():
    def make():
        world, count = World(), 0

        def step(x, y):
            nonlocal count
            count += 1
            return plain(world, x * (count % 3), y), count

        return Program(step, regression, watch=world)

    assert_captured_or_explained(same_as_eager(make, calls=12))


# --- things replaced between the calls


def replaces_a_parameter(world, index):
    if index == 4:
        world.net[2].weight = nn.Parameter(torch.full((2, 5), 0.25))


def replaces_data(world, index):
    if index == 4:
        world.net[2].weight.data = torch.full((2, 5), 0.25)


def replaces_a_layer(world, index):
    if index == 4:
        world.net[2] = nn.Linear(5, 2, bias=False)


def replaces_the_optimizer(world, index):
    if index == 4:
        world.opt = torch.optim.SGD(world.net.parameters(), lr=0.01)


def changes_the_kind_of_optimizer(world, index):
    if index == 4:
        world.opt = torch.optim.Adam(world.net.parameters(), lr=0.01)


def replaces_the_model(world, index):
    if index == 4:
        world.net = mlp(hidden=7)
        world.opt = torch.optim.SGD(world.net.parameters(), lr=0.1)


def freezes_a_layer(world, index):
    if index in (4, 7):
        world.net[0].requires_grad_(index == 7)


def freezes_everything_for_a_call(world, index):
    if index in (4, 5):
        world.net.requires_grad_(index == 5)


def loads_in_place(world, index):
    if index == 4:
        world.net.load_state_dict({k: v + 1 for k, v in world.net.state_dict().items()})


def loads_by_assignment(world, index):
    if index == 4:
        state = {k: v + 1 for k, v in world.net.state_dict().items()}
        world.net.load_state_dict(state, assign=True)


def ties_two_weights(world, index):
    if index == 4:
        world.net[0].bias.data = world.net[2].weight.data[0]


def sets_a_gradient(world, index):
    if index in (3, 5):
        world.net[0].weight.grad = torch.full((5, 4), float(index))


def shares_a_gradient(world, index):
    if index == 4:
        world.net[0].bias.grad = world.net[2].weight.new_zeros(5)
        world.seen.append(world.net[0].bias.grad)


def converts_to_double(world, index):
    if index == 4:
        world.net.double()


def patches_a_forward(world, index):
    if index == 4:
        world.net[1].forward = torch.relu


def wraps_the_loss(world, index):
    if index == 4:
        inner = world.loss
        world.loss = lambda x, y: inner(x, y) * 2


def patches_the_optimizer(world, index):
    if index == 4:
        inner = world.opt.step
        world.opt.step = lambda: (world.seen.append(len(world.seen)), inner())[1]


def prunes_a_weight(world, index):
    if index == 4:
        nn.utils.prune.l1_unstructured(world.net[0], "weight", amount=3)


REPLACEMENTS = [
    replaces_a_parameter,
    replaces_data,
    replaces_a_layer,
    replaces_the_optimizer,
    changes_the_kind_of_optimizer,
    replaces_the_model,
    freezes_a_layer,
    freezes_everything_for_a_call,
    loads_in_place,
    loads_by_assignment,
    ties_two_weights,
    sets_a_gradient,
    shares_a_gradient,
    patches_a_forward,
    wraps_the_loss,
    patches_the_optimizer,
    prunes_a_weight,
]


def accumulating(world, x, y):
    loss = world.loss(x, y)
    loss.backward()
    world.opt.step()
    return loss


@pytest.mark.parametrize("between", REPLACEMENTS)
def test_what_is_replaced_between_the_calls_is_used(between):
    step = same_as_eager(program(plain, between=between), calls=10)

    assert step.explain().captured


@pytest.mark.parametrize(
    "between",
    [
        replaces_a_parameter,
        freezes_a_layer,
        loads_by_assignment,
        sets_a_gradient,
        shares_a_gradient,
    ],
)
def test_what_is_replaced_under_accumulated_gradients_is_used(between):
    step = same_as_eager(program(accumulating, between=between), calls=10)

    assert step.explain().captured


def test_a_model_converted_to_another_dtype_is_used():
    def body(world, x, y):
        return plain(world, x.to(world.net[0].weight.dtype), y.to(world.net[0].weight.dtype))

    step = same_as_eager(program(body, between=converts_to_double), calls=8)

    assert step.explain().captured


# --- calls into the world outside


def warns(world, x, y):
    warnings.warn("again", UserWarning, stacklevel=1)
    return world.update(world.loss(x, y))


def test_a_warning_of_the_step_is_given_in_every_call():
    counts = []
    for compiler in (lambda step: step, stepgraph.compile(on_fallback="silent")):
        torch.manual_seed(0)
        world = World()
        step = compiler(lambda x, y, world=world: warns(world, x, y))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for index in range(5):
                step(*regression(index))
        counts.append(sum(str(one.message) == "again" for one in caught))

    assert counts == [5, 5]
    assert_captured_or_explained(step)


def calls_back(world, x, y):
    loss = world.update(world.loss(x, y))
    world.callback(loss.detach())
    return loss


def test_a_callback_of_the_user_is_called():
    def make():
        inner = program(calls_back)()
        world = inner.watch
        world.callback = lambda value: world.seen.append(value)
        return inner

    assert_captured_or_explained(same_as_eager(make))


def writes_to_a_stream(world, x, y):
    loss = world.update(world.loss(x, y))
    world.stream.write(f"{loss.item():.6f}\n")


def test_a_line_written_to_a_file_is_written_in_every_call(tmp_path):
    texts = []
    for name, compiler in {
        "eager": lambda step: step,
        "compiled": stepgraph.compile(on_fallback="silent"),
    }.items():
        torch.manual_seed(0)
        world = World()
        with open(tmp_path / name, "w") as world.stream:
            step = compiler(lambda x, y, world=world: writes_to_a_stream(world, x, y))
            for index in range(5):
                step(*regression(index))
        texts.append((tmp_path / name).read_text())

    assert texts[0] == texts[1]


def raises_and_catches(world, x, y):
    try:
        torch.linalg.cholesky(x[:4, :4] - 100 * torch.eye(4))
    except torch.linalg.LinAlgError:
        world.seen.append("singular")
    return world.update(world.loss(x, y))


def test_an_error_that_the_step_catches_is_caught():
    assert_captured_or_explained(same_as_eager(program(raises_and_catches)))


def test_a_model_that_the_user_compiled_is_exact():
    steps = [lambda step: step, stepgraph.compile(on_fallback="silent")]
    weights = []
    for compiler in steps:
        torch.manual_seed(0)
        world = World()
        inner = world.net
        world.net = torch.compile(inner, backend="eager")
        step = compiler(lambda x, y, world=world: plain(world, x, y))
        for index in range(6):
            step(*regression(index))
        weights.append(list(inner.parameters()))

    assert all(map(torch.equal, *weights))
    assert_captured_or_explained(step)


def test_a_custom_autograd_function_is_exact():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * 3 + x * 0

    def body(world, x, y):
        return world.update(functional.mse_loss(Doubled.apply(world.net(x)), y))

    assert_captured_or_explained(same_as_eager(program(body)))


# --- steps that are no steps


def test_a_generator_function_is_refused():
    def step(x):
        yield x

    with pytest.raises(ConfigurationError, match="generator"):
        stepgraph.compile(step)


def test_a_coroutine_function_is_refused():
    async def step(x):
        return x

    with pytest.raises(ConfigurationError):
        stepgraph.compile(step)


def test_a_step_that_returns_a_generator_runs_exactly():
    def make():
        world = World()

        def step(x, y):
            loss = world.update(world.loss(x, y))
            return (value for value in (loss.detach(), loss.detach() * 2))

        return Program(lambda x, y: list(step(x, y)), regression, watch=world)

    assert_captured_or_explained(same_as_eager(make))


def test_a_step_without_a_backward_runs_exactly():
    def body(world, x, y):
        return world.loss(x, y).detach()

    assert_captured_or_explained(same_as_eager(program(body)))


def test_a_step_that_does_nothing_runs_exactly():
    assert_captured_or_explained(same_as_eager(program(lambda world, x, y: None)))


def test_a_compiled_step_inside_a_compiled_step_runs_exactly():
    def make(decorate):
        world = World()
        inner = decorate(lambda x, y: plain(world, x, y))

        @decorate
        def step(x, y):
            return inner(x, y) + inner(y @ torch.ones(2, 4), y)

        return Program(step, regression, watch=world)

    assert_captured_or_explained(same_as_eager(make, decorated=True))


@pytest.mark.parametrize("calls", [0, 3])
def test_a_compiled_step_is_part_of_an_export_that_calls_it(calls):
    net = nn.Linear(4, 3)

    @stepgraph.compile(on_fallback="error")
    def forward(x):
        return net(x).relu().detach()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return forward(x) + 1

    x = torch.randn(2, 4)
    for _ in range(calls):
        forward(x)

    exported = torch.export.export(Whole(), (x,), strict=False)

    assert torch.equal(exported.module()(x), net(x).relu() + 1)

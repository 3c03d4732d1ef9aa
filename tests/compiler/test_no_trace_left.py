"""A capture changes nothing outside it, whether it succeeds or fails."""

import builtins
import contextlib
import gc
import random
import sys
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from support.harness import mlp, regression

SHARED = [
    torch,
    torch.Tensor,
    nn.Module,
    nn.Parameter,
    functional,
    nn.utils,
    torch.optim.Optimizer,
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.lr_scheduler.LRScheduler,
    torch.optim.lr_scheduler.StepLR,
    torch.optim.swa_utils.AveragedModel,
    torch.amp.GradScaler,
    torch.autograd,
    torch.autograd.Function,
    torch.random,
    torch.cuda,
    torch._dynamo,
    torch._dynamo.config,
    torch._dynamo.convert_frame,
    torch._dynamo.variables.tensor.TensorVariable,
    torch._dynamo.variables.constant,
    torch._dynamo.variables.torch,
    torch._dynamo.variables.optimizer,
    torch._dynamo.variables.builder,
    torch._dynamo.trace_rules,
    torch._dynamo.symbolic_convert,
    torch._dynamo.guards,
    torch._dynamo.output_graph,
    torch._C._autograd,
    torch.fx.experimental.proxy_tensor,
    torch.utils.checkpoint,
    builtins,
    random,
    np.random,
    sys,
]
VOLATILE = {
    "last_exc",
    "last_traceback",
    "last_type",
    "last_value",
    "_",
    "modules",
    "__warningregistry__",
}


def shared_attributes():
    """The identity of every attribute of what all programs share."""
    return {
        f"{getattr(owner, '__name__', owner)}.{name}": value
        for owner in SHARED
        for name, value in vars(owner).items()
        if name not in VOLATILE and not isinstance(value, types.ModuleType | int | float | str)
    }


def flags():
    return {
        "dynamo": torch._dynamo.config.get_config_copy(),
        "functorch": torch._functorch.config.get_config_copy(),
        "inductor": torch._inductor.config.get_config_copy(),
        "profile": sys.getprofile(),
        "trace": sys.gettrace(),
        "threads": threading.active_count(),
        "grad mode": torch.is_grad_enabled(),
        "autograd threads": torch.autograd.is_multithreading_enabled()
        if hasattr(torch.autograd, "is_multithreading_enabled")
        else None,
        "recursion": sys.getrecursionlimit(),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "printing": torch._tensor_str.PRINT_OPTS.precision,
        "function mode": torch._C._len_torch_function_stack(),
        "dispatch mode": torch._C._len_torch_dispatch_stack(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "stance": repr(torch._dynamo.eval_frame._stance),
    }


@contextlib.contextmanager
def nothing_changes():
    """Fail if the block changes anything that all programs share."""
    before, attributes = flags(), shared_attributes()
    yield
    after, found = flags(), shared_attributes()
    assert after == before
    changed = [
        name
        for name in attributes.keys() | found.keys()
        if attributes.get(name) is not found.get(name)
    ]
    assert not changed


class World:
    """A model with an optimizer and a schedule, and what its step writes for the user."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.3), nn.Linear(5, 2))
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.opt, 2)
        self.losses, self.table = [], {}

    def train(self, x, y):
        self.opt.zero_grad()
        loss = functional.mse_loss(self.net(x), y)
        loss.backward()
        self.opt.step()
        self.schedule.step()
        self.losses.append(loss.detach())
        return loss


class Everything(World):
    """A world with as many kinds of objects as a step can have."""

    def __init__(self):
        super().__init__()
        self.net.append(nn.BatchNorm1d(2))
        self.opt = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.opt, 2)
        self.average = torch.optim.swa_utils.AveragedModel(self.net)

    def train(self, x, y):
        loss = super().train(x, y)
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.average.update_parameters(self.net)
        self.table["last"] = loss.detach()
        return loss


def good(world, x, y):
    return world.train(x, y)


def branches_at_the_end(world, x, y):
    loss = world.train(x, y)
    return None if loss > 1 else loss


def branches_at_the_start(world, x, y):
    scale = 2.0 if x.sum() > 0 else 1.0
    return world.train(x * scale, y)


def calls_numpy(world, x, y):
    world.train(x, y)
    return float(np.random.rand())


def raises_in_the_trace(world, x, y):
    loss = world.train(x, y)
    if torch.compiler.is_compiling():
        raise RuntimeError("not while it is traced")
    return loss


def reads_the_schedule(world, x, y):
    world.train(x, y)
    return world.opt.state_dict()["param_groups"][0]["lr"], world.schedule.get_last_lr()


STEPS = [
    good,
    branches_at_the_end,
    branches_at_the_start,
    calls_numpy,
    raises_in_the_trace,
    reads_the_schedule,
]


@pytest.fixture(scope="module", autouse=True)
def _torch_has_loaded_its_tracer():
    """The first trace of a process imports and fills much of torch; that is not ours."""
    torch.compile(lambda x: x + 1, backend="aot_eager")(torch.ones(2))
    run(good, 4)


def run(body, calls, world=None):
    world = world or seeded_world()
    step = stepgraph.compile(lambda x, y: body(world, x, y), on_fallback="silent")
    for index in range(calls):
        step(*regression(index))
    return step, world


@pytest.mark.parametrize("body", STEPS)
def test_a_capture_leaves_what_it_traced_and_what_programs_share_as_it_was(body):
    globals_of_step = {"body": body, "world": seeded_world(Everything)}
    exec("def step(x, y, *, scale=1.0):\n    return body(world, x * scale, y)\n", globals_of_step)
    function, names = globals_of_step["step"], dict(globals_of_step)
    facts = function_facts(function)
    step = stepgraph.compile(function, on_fallback="silent")

    with nothing_changes():
        for index in range(4):
            step(*regression(index))

    explanation = step.explain()
    assert explanation.captured or explanation.fallback_reason
    assert function_facts(function) == facts
    assert all(globals_of_step[name] is value for name, value in names.items())
    added = globals_of_step.keys() - names.keys()
    assert not added or (explanation.captured and all(name[0] == "_" for name in added))
    assert_unpatched(globals_of_step["world"], like=trained_eagerly(body))


def plainly(world, x, y):
    loss = nn.functional.mse_loss(world.net(x), y)
    world.opt.zero_grad()
    loss.backward()
    world.opt.step()
    return loss


def test_a_capture_on_terms_leaves_nothing_behind_either():
    world = seeded_world(Everything)
    globals_of_step = {"plainly": plainly, "world": world}
    exec("def step(x, y):\n    return plainly(world, x, y)\n", globals_of_step)
    names = dict(globals_of_step)
    split = stepgraph.Microbatches(2, allow_randomness=True, allow_batch_statistics=True)
    step = stepgraph.compile(
        globals_of_step["step"], microbatches=split, accumulate=2, on_fallback="error"
    )

    with nothing_changes():
        for index in range(4):
            step(*regression(index))

    added = globals_of_step.keys() - names.keys()
    assert step.explain().captures == 2
    assert all(name[0] == "_" for name in added), added
    assert_unpatched(world, like=trained_eagerly(plainly))


def seeded_world(kind=World):
    torch.manual_seed(0)
    return kind()


def trained_eagerly(body):
    world = seeded_world(Everything)
    for index in range(4):
        body(world, *regression(index))
    return world


def function_facts(function):
    return (
        function.__code__,
        function.__defaults__,
        dict(function.__kwdefaults__),
        dict(vars(function)),
    )


def assert_unpatched(world, *, like):
    """Assert that the objects of a step have the attributes and methods of an eager run."""
    for name in ("opt", "schedule", "average", "net"):
        ours, plain = getattr(world, name), getattr(like, name)
        assert vars(ours).keys() == vars(plain).keys()
        for key, value in vars(plain).items():
            assert type(vars(ours)[key]) is type(value), f"{name}.{key}"
        for method in ("step", "zero_grad", "update_parameters", "forward", "add_param_group"):
            if hasattr(plain, method):
                assert code_of(getattr(ours, method)) is code_of(getattr(plain, method)), method


def code_of(method):
    return getattr(method, "__func__", method).__code__


def test_nothing_printed_or_warned_by_a_capture(capfd, recwarn):
    run(good, 4)
    run(branches_at_the_end, 4)

    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not recwarn.list


def test_a_trace_draws_no_random_numbers():
    for body in (good, branches_at_the_end):
        torch.manual_seed(0)
        world, states = World(), []
        step = stepgraph.compile(
            lambda x, y, world=world, body=body: body(world, x, y), on_fallback="silent"
        )
        torch.manual_seed(0)
        plain, expected = World(), []
        torch.manual_seed(1)
        start = torch.get_rng_state()
        for index in range(5):
            body(plain, *regression(index))
            expected.append(torch.get_rng_state())
        torch.set_rng_state(start)
        for index in range(5):
            before = random.getstate(), np.random.get_state()[1].tolist()
            step(*regression(index))
            states.append(torch.get_rng_state())
            assert (random.getstate(), np.random.get_state()[1].tolist()) == before

        assert all(map(torch.equal, states, expected))


def test_a_step_that_returns_none_returns_none():
    net = mlp()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)

    @stepgraph.compile(on_fallback="error")
    def step(x, y):
        if net[0].weight.grad is not None:
            opt.zero_grad()
        functional.mse_loss(net(x), y).backward()
        opt.step()

    assert [step(*regression(index)) for index in range(6)] == [None] * 6


def test_nones_inside_results_and_attributes_stay_none():
    world = World()

    @stepgraph.compile(on_fallback="error")
    def step(x, y):
        had = world.net[0].weight.grad is not None, world.net[0].weight.requires_grad
        loss = world.train(x, y)
        world.table["nothing"] = None
        return {"loss": loss, "nothing": None, "flags": [True, False, had]}

    for index in range(6):
        result = step(*regression(index))
        assert result["nothing"] is None
        assert world.table["nothing"] is None
        assert result["flags"] == [True, False, (index > 0, True)]


@pytest.mark.parametrize("before", [False, True])
def test_an_unrelated_compiled_function_still_returns_its_none(before):
    parameter = nn.Parameter(torch.ones(3))
    calls = []

    def unrelated(x, flag=None):
        calls.append(1) if not torch.compiler.is_compiling() else None
        parameter_has_grad = parameter.grad is not None
        return x * 2, None, True, False, flag, parameter_has_grad, parameter.requires_grad

    compiled = torch.compile(unrelated, backend="eager")
    if before:
        compiled(torch.ones(2))

    run(good, 4)
    run(branches_at_the_end, 4)
    for _ in range(3):
        value, *rest = compiled(torch.ones(2))

        assert torch.equal(value, torch.full((2,), 2.0))
        assert rest == [None, True, False, None, False, True]


def test_an_unrelated_compiled_function_is_not_compiled_again():
    compilations = []

    def backend(module, inputs):
        compilations.append(module)
        return module.forward

    net = mlp()
    compiled = torch.compile(lambda x: net(x).sum(), backend=backend)
    compiled(torch.ones(3, 4))

    run(good, 4)
    run(branches_at_the_end, 4)
    compiled(torch.ones(3, 4))

    assert len(compilations) == 1


def test_a_model_that_is_also_compiled_by_the_user_keeps_its_code():
    compilations = []

    def backend(module, inputs):
        compilations.append(module)
        return module.forward

    world = seeded_world()
    compiled = torch.compile(world.net, backend=backend)

    def evaluate():
        world.net.eval()
        with torch.no_grad():
            result = compiled(torch.ones(3, 4)), world.net(torch.ones(3, 4))
        world.net.train()
        return result

    evaluate()
    made = len(compilations)
    run(good, 4, world)

    assert torch.equal(*evaluate())
    assert len(compilations) == made


def test_our_own_captures_survive_a_reset_of_the_tracer():
    step, _ = run(good, 4)
    captures = step.explain().captures

    torch._dynamo.reset()
    step(*regression(5))

    assert step.explain().captures == captures
    assert step.explain().fallback_reason is None


def test_a_dropped_step_frees_its_model():
    def dropped():
        step, world = run(good, 4)
        assert step.explain().captured
        return weakref.ref(world.net[0].weight), weakref.ref(world.opt)

    weight, optimizer = dropped()
    gc.collect()  # runs finalizers that hold what the second pass frees
    gc.collect()

    assert weight() is None
    assert optimizer() is None


@pytest.mark.parametrize("body", [good, branches_at_the_end])
def test_replays_keep_no_more_tensors_alive_with_every_call(body):
    step, world = run(body, 12)  # more than there are attempts to capture

    def alive():
        world.losses.clear()
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    before = alive()
    for index in range(20):
        step(*regression(index))

    assert alive() <= before


def test_a_failed_capture_leaves_the_result_of_one_eager_call():
    plain, world = seeded_world(Everything), seeded_world(Everything)
    step = stepgraph.compile(lambda x, y: branches_at_the_end(world, x, y), on_fallback="silent")
    torch.manual_seed(1)
    for index in range(2):
        branches_at_the_end(plain, *regression(index))
    torch.manual_seed(1)
    for index in range(2):
        step(*regression(index))

    assert world.schedule.last_epoch == plain.schedule.last_epoch == 2
    assert world.schedule._step_count == plain.schedule._step_count
    assert len(world.losses) == 2
    assert int(world.net[3].num_batches_tracked) == 2
    assert int(world.average.n_averaged) == 2
    assert all(map(torch.equal, world.net.parameters(), plain.net.parameters()))
    assert all(
        torch.equal(p.grad, q.grad)
        for p, q in zip(world.net.parameters(), plain.net.parameters(), strict=True)
    )

"""Which nodes go to Inductor in one run, and what moves around a run."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx import Graph

from stepgraph.effects import effect_of
from stepgraph.ir import Kind
from stepgraph.ir.build import add, clear, flat_graph, log, lr, part, step, store
from stepgraph.lowering.regions.select import Run, eager_reason, select

X = {"batch:x": torch.ones(4, 3)}
XW = {**X, "param:w": torch.ones(3, 3, requires_grad=True)}


def loss_of(x, w):
    with part(Kind.FORWARD):
        loss = torch.tanh(x @ w).square().sum()
    with part(Kind.BACKWARD):
        (gradient,) = torch.autograd.grad(loss, [w])
    return loss, gradient


def selected(function, inputs=XW):
    """Return the runs, and the operators between them."""
    items = select(flat_graph(function, inputs).graph)
    runs = [item for item in items if isinstance(item, Run)]
    alone = [_name(n) for n in items if not isinstance(n, Run) and n.op == "call_function"]
    return runs, [name for name in alone if name != "detach"]


def _name(node):
    effect = effect_of(node.target)
    return str(node.target).split(".")[1] if effect is None else effect.name


def names(nodes):
    return [_name(node) for node in nodes]


def test_forward_and_backward_are_one_run_and_the_stores_wait_for_it():
    def sgd(x, w):
        clear([w])
        _, gradient = loss_of(x, w)
        step([w], [store(w, gradient)])

    (run,), alone = selected(sgd)

    assert alone == ["zero_grad", "step"]
    assert names(run.after) == ["set_grad"]
    assert names(run.inside)[-1] == "first_grad"
    assert "mm" in names(run.inside)


def test_clipping_behind_the_stores_is_part_of_the_run():
    def clipped(x, w):
        _, gradient = loss_of(x, w)
        grad = store(w, gradient)
        with part(Kind.CLIP):
            grad.mul_((1.0 / (grad.norm() + 1e-6)).clamp(max=1.0))
        step([w], [grad])

    (run,), alone = selected(clipped)

    assert alone == ["step"]
    assert names(run.inside)[-1] == "mul_"
    assert names(run.after) == ["set_grad"]


def test_an_update_ends_a_run():
    def two(x, w):
        _, gradient = loss_of(x, w)
        step([w], [store(w, gradient)])
        _, gradient = loss_of(x, w)
        step([w], [store(w, gradient)])

    runs, alone = selected(two)

    assert len(runs) == 2
    assert alone == ["step", "step"]


def test_adding_to_a_gradient_is_part_of_the_run():
    def accumulating(x, w, grad):
        _, gradient = loss_of(x, w)
        add(grad, gradient)

    (run,), alone = selected(accumulating, {**XW, "grad:w": torch.ones(3, 3)})

    assert alone == []
    assert names(run.inside)[-1] == "add_grad_"


def test_random_draws_move_before_the_run_in_their_order():
    def noisy(x, w):
        with part(Kind.FORWARD):
            hidden = torch.tanh(x @ w)
            mask = torch.empty_like(hidden).bernoulli_(0.5)
            noise = torch.randn(4, 3)
            loss = (hidden * mask + noise + torch.rand_like(hidden)).square().sum()
        return loss

    (run,), alone = selected(noisy)

    assert alone == []
    assert names(run.before) == ["empty_like", "bernoulli_", "randn", "rand_like"]
    assert not {"empty_like", "bernoulli_", "randn", "rand_like"} & set(names(run.inside))


def test_a_draw_that_depends_on_values_cuts_the_run():
    def sampled(x, w):
        with part(Kind.FORWARD):
            chance = torch.sigmoid(x @ w).square().sqrt()
            drawn = torch.bernoulli(chance)
            return (drawn * chance).square().exp().sum()

    runs, alone = selected(sampled)

    assert [run.operators for run in runs] == [4, 4]
    assert alone == ["bernoulli"]


def test_a_draw_into_memory_that_was_read_cuts_the_run():
    def overwritten(x):
        with part(Kind.FORWARD):
            y = x.sin().cos().sin().cos()
            x.normal_()
            return (y + x).sin().cos().sin().cos()

    runs, alone = selected(overwritten, X)

    assert len(runs) == 2
    assert alone == ["normal_"]


def test_a_few_operators_are_not_worth_a_call():
    def small(x):
        with part(Kind.FORWARD):
            return x.sin() + 1

    runs, alone = selected(small, X)

    assert runs == []
    assert alone == ["sin", "add"]


def test_a_number_that_depends_on_values_stays_outside():
    graph = Graph()
    x = graph.placeholder("x")
    equal = graph.call_function(torch.ops.aten.equal.default, (x, x))

    assert eager_reason(equal) == "a number that depends on values"


def test_a_learning_rate_is_read_before_the_run():
    def scaled(x, w):
        with part(Kind.FORWARD):
            y = (x @ w).sin().cos()
            return (y * lr()).sin().cos().sum()

    (run,), alone = selected(scaled)

    assert alone == []
    assert names(run.before) == ["hyper"]


def test_a_log_waits_unless_its_value_changes():
    def logged(x):
        with part(Kind.FORWARD):
            y = x.sin().cos().sin().cos()
        log(y)
        with part(Kind.FORWARD):
            return y.sin().cos().sin().cos()

    def changed(x):
        with part(Kind.FORWARD):
            y = x.sin().cos().sin().cos()
        log(y)
        with part(Kind.FORWARD):
            y.mul_(2)
            return y.sin().cos().sin().cos()

    waiting, _ = selected(logged, X)
    cut, _ = selected(changed, X)

    assert [names(run.after) for run in waiting] == [["log"]]
    assert [names(run.after) for run in cut] == [["log"], []]


def test_complex_numbers_stay_eager():
    def spectrum(x):
        with part(Kind.FORWARD):
            return torch.fft.fft(x).abs().sum()

    runs, alone = selected(spectrum, X)

    assert runs == []
    assert "abs" in alone


def test_an_index_that_is_computed_becomes_an_input_of_the_next_run():
    def picked(x):
        with part(Kind.FORWARD):
            y = x.sin().cos().sin().cos()
            best = y.argmax(1, keepdim=True)
            return y.gather(1, best).sin().cos().sin().cos()

    (first, second), _ = selected(picked, X)

    assert names(first.inside)[-1] == "argmax"
    assert names(second.inside)[0] == "gather"


def test_tensors_on_a_gpu_are_given_to_inductor_and_others_are_not():
    def reason(device):
        node = Graph().call_function(torch.ops.aten.mm.default)
        with FakeTensorMode():
            node.meta["val"] = torch.empty(2, 2, device=device)
        return eager_reason(node)

    assert reason("cuda") is None
    assert reason("meta") == "tensors on meta"


@pytest.mark.parametrize(
    ("operator", "device", "looks"),
    [
        (torch.ops.aten.one_hot.default, "cpu", False),  # its classes are checked before the region
        (torch.ops.aten.one_hot.default, "cuda", True),
        (torch.ops.aten.binary_cross_entropy.default, "cpu", True),
        (torch.ops.aten.binary_cross_entropy.default, "cuda", True),
        (torch.ops.aten._assert_async.default, "cpu", True),
        (torch.ops.aten._assert_async.msg, "cpu", True),
        (torch.ops.aten.repeat_interleave.Tensor, "cpu", True),
        (torch.ops.aten.binary_cross_entropy_backward.default, "cpu", False),
    ],
)
def test_operators_whose_look_at_values_inductor_would_drop_stay_eager(operator, device, looks):
    node = Graph().call_function(operator)
    with FakeTensorMode():
        node.meta["val"] = torch.empty(2, 2, device=device)

    assert eager_reason(node) == ("an operator that checks values" if looks else None)

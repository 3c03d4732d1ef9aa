"""Why a step cannot be recorded as a CUDA graph: every reason, by name."""

import pytest
import torch
from torch import nn

from stepgraph.effects import OPS
from stepgraph.ir import Kind
from stepgraph.ir.build import add, clear, flat_graph, log, lr, part, set_lr, step, store
from stepgraph.lowering import NotFused, Obstacle
from stepgraph.lowering.cuda.legality import gradients, leaving, tail_of, why_not_capturable
from stepgraph.lowering.updates.triton import KernelUpdate

XW = {"batch:x": torch.ones(4, 3), "param:w": torch.ones(3, 3, requires_grad=True)}


def update():
    return KernelUpdate(torch.optim.AdamW([nn.Parameter(torch.ones(3, 3))]))


def reasons(function, inputs=XW, updates=None, device="cpu"):
    """Return why not, with Triton kernels for optimizer 0."""
    flat = flat_graph(function, inputs, labels={0: "AdamW(opt)"})
    return why_not_capturable(flat, {0: update()} if updates is None else updates, device=device)


def trained(x, w):
    clear([w])
    with part(Kind.FORWARD):
        loss = torch.tanh(x @ w).square().sum()
    with part(Kind.BACKWARD):
        (gradient,) = torch.autograd.grad(loss, [w])
    return loss, store(w, gradient)


def plain(x, w):
    loss, grad = trained(x, w)
    step([w], [grad])
    log(loss)
    OPS.lr_step.default(None, 2)
    return loss


def test_a_plain_step_with_a_log_and_a_schedule_can_be_recorded():
    assert reasons(plain) == []


def test_what_moves_pointers_is_left_to_the_host():
    graph = flat_graph(plain, XW).graph
    tail = tail_of(graph)

    names = [node.target._schema.name.partition("::")[2] for node in tail]

    assert names == ["zero_grad", "set_grad", "log", "lr_step"]
    assert [node.target for node in leaving(graph, tail)] == [
        OPS.first_grad.default,
        torch.ops.aten.sum.default,
    ]


def test_gradients_from_earlier_calls_are_found_by_name():
    def accumulated(x, w, grad):
        with part(Kind.BACKWARD):
            (gradient,) = torch.autograd.grad((x @ w).sum(), [w])
        add(grad, gradient)
        step([w], [grad])

    inputs = {**XW, "grad:w": torch.ones(3, 3)}
    flat = flat_graph(accumulated, inputs)
    _, w, grad = flat.graph.find_nodes(op="placeholder")

    assert list(gradients(flat.graph).values()) == [[(w, grad)]]
    assert reasons(accumulated, inputs) == []


def _schedule_first(x, w):
    _, grad = trained(x, w)
    OPS.lr_step.default(None, 2)
    step([w], [grad])


def _warm_up(x, w):
    loss, grad = trained(x, w)
    set_lr(lr() * 2)
    step([w], [grad])
    return loss


def _reads_rate(x, w):
    loss, grad = trained(x, w)
    step([w], [grad])
    return loss * lr()


def _waits(x, w):
    _, grad = trained(x, w)
    step([w], [grad])
    return torch.nonzero(x)


def _scaled(x, w):
    _, grad = trained(x, w)
    OPS.scaled_step.default([w.detach()], [grad], 3, 0)


def _view_of_input(x, w):
    plain(x, w)
    return x.view(-1)


def _shares(x, w):
    loss = plain(x, w)
    return loss, loss.view(1)


def _view_of_gradient(x, w):
    _, grad = trained(x, w)
    row = grad[0]
    step([w], [grad])
    return row + 1


def _someone_elses(x, w):
    _, grad = trained(x, w)
    step([w], [grad * 2])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_schedule_first, "a schedule steps before an update"),
        (_warm_up, "a hyper-parameter is computed in the step"),
        (_reads_rate, "it computes with a number that the host reads in the step"),
        (_waits, "nonzero waits for the device"),
        (_scaled, "a loss scaler's own code runs"),
        (_view_of_input, "it returns a view of an input"),
        (_shares, "two of its results share memory"),
        (_view_of_gradient, "a view of a gradient is used after an update"),
        (
            _someone_elses,
            "AdamW(opt): its gradients are assigned to parameters only when the step runs",
        ),
    ],
)
def test_every_reason_has_a_name(function, reason):
    assert reason in reasons(function)


def test_an_optimizers_own_step_is_named_with_the_reason_for_it():
    found = reasons(plain, updates={0: NotFused(Obstacle.STEP_REPLACED)})

    assert found == ["AdamW(opt) runs its own code: its step() was replaced"]


def test_tensors_elsewhere_are_named():
    assert "it uses tensors on cpu" in reasons(plain, device="cuda")


def test_inputs_that_share_memory_are_named():
    shared = torch.ones(4, 3)
    inputs = {**XW, "batch:x": shared, "batch:y": shared}

    def both(x, w, y):
        return (x @ w + y @ w).sum()

    assert reasons(both, inputs) == ["two of its inputs share memory"]

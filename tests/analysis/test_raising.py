"""Which nodes may raise because of values; compared with what operators do on bad values."""

import pytest
import torch
from torch.nn import functional

from stepgraph.analysis import may_raise
from stepgraph.ir import Kind
from stepgraph.ir.build import clear, flat_graph, log, nodes_of, part, set_lr, step, store

INPUTS = {
    "batch:x": torch.ones(4, 3),
    "param:w": torch.ones(3, 3, requires_grad=True),
    "grad:w": torch.ones(3, 3),
    "batch:i": torch.tensor([0, 1, 2, 0]),
}


def graph_of(function):
    def marked(*inputs):
        with part(Kind.FORWARD):
            return function(*inputs)

    return flat_graph(marked, INPUTS)


def raising(function, name):
    nodes = nodes_of(graph_of(function), name)
    assert nodes, name
    return {may_raise(node) for node in nodes}


QUIET = {
    "tanh": lambda x, w, g, i: torch.tanh(x),
    "div": lambda x, w, g, i: x / (x - x),
    "log": lambda x, w, g, i: (x - 2).log(),
    "mm": lambda x, w, g, i: x @ w,
    "sum": lambda x, w, g, i: x.sum(),
    "gt": lambda x, w, g, i: x > 0,
    "add_": lambda x, w, g, i: x.add_(1),
    "native_layer_norm": lambda x, w, g, i: functional.layer_norm(x, [3]),
    "native_dropout": lambda x, w, g, i: torch.native_dropout(x, 0.5, True),
    "_foreach_mul_": lambda x, w, g, i: torch._foreach_mul_([x, g], 2.0),
    "t": lambda x, w, g, i: x.t(),
}
LOUD = {
    "floor_divide": lambda x, w, g, i: i // (i - i),
    "remainder": lambda x, w, g, i: i % (i - i),
    "embedding": lambda x, w, g, i: functional.embedding(i + 5, w),
    "gather": lambda x, w, g, i: x.gather(1, i[:, None] + 5),
    "index_select": lambda x, w, g, i: x.index_select(1, i + 5),
    "nll_loss_forward": lambda x, w, g, i: functional.nll_loss(x, i + 5),
    "linalg_cholesky_ex": lambda x, w, g, i: torch.linalg.cholesky(w - 2),
    "multinomial": lambda x, w, g, i: torch.multinomial(x - 1, 1),
    "bernoulli": lambda x, w, g, i: torch.bernoulli(x + 5),
    "poisson": lambda x, w, g, i: torch.poisson(x - 5),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_computes_on_all_values_never_raises(name):
    assert raising(QUIET[name], name) == {False}


@pytest.mark.parametrize("name", LOUD)
def test_what_raises_on_some_values_may_raise(name):
    with pytest.raises((RuntimeError, IndexError, ZeroDivisionError, torch.linalg.LinAlgError)):
        LOUD[name](*(value.detach().clone() for value in INPUTS.values()))

    assert True in raising(LOUD[name], name)


def test_effects_say_it_themselves():
    def function(x, w, g, i):
        step([w], [g])
        clear([w])
        store(w, x.t() @ x)
        log(x.sum())
        set_lr(x.sum())

    flat = graph_of(function)

    found = {name: may_raise(nodes_of(flat, name)[0]) for name in ("step", "zero_grad", "log")}
    assert found == {"step": True, "zero_grad": False, "log": False}
    assert [may_raise(node) for node in nodes_of(flat, "first_grad")] == [False]


def test_inputs_and_outputs_do_not_raise():
    flat = graph_of(lambda x, w, g, i: torch.tanh(x))

    assert not any(may_raise(n) for n in flat.graph.nodes if n.op != "call_function")


def outside_of_torch(x):
    raise ValueError(x)


def test_a_function_that_is_no_operator_may_raise():
    flat = graph_of(lambda x, w, g, i: torch.tanh(x))
    (node,) = nodes_of(flat, "tanh")
    node.target = outside_of_torch

    assert may_raise(node)

"""storages_of, writes_of and draws_random follow what operators do, declared or not."""

import operator

import pytest
import torch
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from stepgraph.ir import all_storages, draws_random, storages_of, writes_of
from stepgraph.ir.memory_access import is_glue, read_arguments


def traced(function, *inputs, mode="real"):
    module = make_fx(function, tracing_mode=mode)(*inputs)
    return {node.name: node for node in module.graph.nodes}


def names(nodes):
    return sorted(node.name for node in nodes)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.view(4).add_(1),
        lambda x: x.split(1)[1].mul_(2),
        lambda x: x.unbind(0)[0].mul_(2),
        lambda x: x.chunk(2)[0].t().neg_(),
        lambda x: x.detach().zero_(),
        lambda x: x[0].copy_(x[1]),
        lambda x: torch.ops.aten._unsafe_view(x, [4]).add_(1),
        lambda x: torch.ops.aten.unsafe_split(x, 1)[0].add_(1),
        lambda x: x.add_(1).mul_(2).t().sub_(3),
    ],
)
def test_a_write_through_a_view_reaches_the_placeholder(write):
    nodes = traced(write, torch.ones(2, 2))

    assert {root for node in nodes.values() for root in writes_of(node)} == {nodes["x_1"]}


def test_foreach_writes_every_tensor_of_its_list():
    nodes = traced(lambda a, b: torch._foreach_add_([a, b], 1.0), torch.ones(2), torch.ones(3))

    assert names(writes_of(nodes["_foreach_add_"])) == ["a_1", "b_1"]


def test_out_argument_is_written():
    nodes = traced(lambda a, out: torch.ops.aten.neg.out(a, out=out), torch.ones(2), torch.ones(2))

    assert names(writes_of(nodes["neg"])) == ["out_1"]
    assert storages_of(nodes["neg"]) == {nodes["out_1"]}


def test_a_pure_operator_owns_its_result_and_writes_nothing():
    nodes = traced(lambda x: x + 1, torch.ones(2))

    assert storages_of(nodes["add"]) == {nodes["add"]}
    assert writes_of(nodes["add"]) == set()


def test_results_of_one_operator_are_separate_memories():
    def write_one(x):
        values, places = x.max(0)
        values.add_(1)
        return places

    nodes = traced(write_one, torch.ones(2, 2))

    assert names(writes_of(nodes["add_"])) == ["getitem"]
    assert storages_of(nodes["getitem_1"]) == {nodes["getitem_1"]}


def test_two_items_of_one_place_are_one_memory():
    graph = Graph()
    source = graph.placeholder("x")
    pair = graph.call_function(torch.ops.aten.max.dim, (source, 0))
    first, again = (graph.call_function(operator.getitem, (pair, 0)) for _ in range(2))

    assert storages_of(again) == storages_of(first) == {first}


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_writes_its_running_statistics_in_training_only(training):
    def normalize(x, mean, var):
        return torch.ops.aten.native_batch_norm(x, None, None, mean, var, training, 0.1, 1e-5)[0]

    nodes = traced(normalize, torch.ones(4, 2), torch.zeros(2), torch.ones(2))

    written = ["mean_1", "var_1"] if training else []
    assert names(writes_of(nodes["native_batch_norm"])) == written


def test_only_operators_that_draw_are_random():
    nodes = traced(lambda x: torch.bernoulli(x) + x.sin(), torch.ones(2))

    assert [name for name, node in nodes.items() if draws_random(node)] == ["bernoulli"]


def test_a_fused_optimizer_writes_parameters_gradients_and_state():
    def update(p, g, m, v, step):
        torch._fused_adamw_(
            [p], [g], [m], [v], [], [step],
            lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    nodes = traced(update, *(torch.ones(2) for _ in range(4)), torch.ones(()))

    assert set(names(writes_of(nodes["_fused_adamw_"]))) >= {"p_1", "m_1", "v_1"}


def test_placeholders_that_share_memory_are_one_storage():
    base = torch.ones(4)
    nodes = traced(lambda a, b: a.sum() + b, base, base.view(2, 2).t(), mode="fake")
    graph = nodes["a_1"].graph

    assert all_storages(graph)[nodes["b_1"]] == {nodes["a_1"]}


def test_an_unknown_function_may_alias_and_write_everything():
    graph = Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    call = graph.call_function(names, (x, y))

    assert storages_of(call) == {call, x, y}
    assert writes_of(call) == {x, y}


def test_a_copy_reads_its_source_and_not_its_target():
    nodes = traced(lambda x, y: x.copy_(y), torch.ones(2), torch.zeros(2))

    assert read_arguments(nodes["copy_"]) == (nodes["y_1"],)


def test_views_sizes_and_items_are_glue_and_computations_are_not():
    def mixed(x):
        y = x.t()
        return y.sum() * y.shape[0] + x.item()

    nodes = traced(mixed, torch.ones(1, 1), mode="symbolic")

    assert is_glue(nodes["t"])
    assert all(is_glue(node) for name, node in nodes.items() if name.startswith("sym_size"))
    assert not is_glue(nodes["sum_1"])
    assert not is_glue(nodes["_local_scalar_dense"])


def test_a_long_chain_of_writes_is_followed_to_its_end():
    graph = Graph()
    node = start = graph.placeholder("x")
    for _ in range(5000):
        node = graph.call_function(torch.ops.aten.add_.Tensor, (node, 1))

    assert storages_of(node) == {start}

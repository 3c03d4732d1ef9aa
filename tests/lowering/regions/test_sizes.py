"""What a compiler assumed about sizes is asked again for every new size."""

import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from stepgraph.torch_private import FakeInputs, has_unbacked


def symbolic(function, *inputs):
    return make_fx(function, tracing_mode="symbolic")(*inputs)


def placeholders(graph_module) -> list[Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]


def stand_ins(*shapes) -> FakeInputs:
    traced = symbolic(lambda *tensors: [t + 1 for t in tensors], *map(torch.ones, shapes))
    return FakeInputs([node.meta["val"] for node in placeholders(traced)])


def test_stand_ins_share_the_symbols_of_the_trace():
    inputs = stand_ins((6, 4), (6, 2))

    first, second = inputs.values
    assert str(first.shape[0]) == str(second.shape[0])
    assert len(inputs.symbols) == 3
    assert list(inputs.symbols.values()) == [(0, 0), (0, 1), (1, 1)]


def test_without_assumptions_any_size_but_0_and_1_holds():
    inputs = stand_ins((6, 4))

    assert inputs.holds((6, 4))
    assert inputs.holds((64, 5))
    assert not inputs.holds((1, 4))


def test_an_assumption_about_a_size_is_remembered():
    inputs = stand_ins((6, 4))
    assert inputs.values[0].shape[0] % 2 == 0

    assert inputs.holds((8, 4))
    assert not inputs.holds((7, 4))


def test_a_size_taken_as_a_constant_is_remembered():
    inputs = stand_ins((6, 4))
    assert int(inputs.values[0].shape[1]) == 4

    assert inputs.holds((7, 4))
    assert not inputs.holds((6, 5))


def test_an_order_of_two_sizes_is_remembered():
    inputs = stand_ins((6, 4), (7, 4))
    first, second = inputs.values
    assert first.shape[0] < second.shape[0]

    assert inputs.holds((3, 4, 5))
    assert not inputs.holds((5, 4, 3))


def test_an_ordinary_size_is_no_size_that_data_decides():
    traced = symbolic(lambda x: x + 1, torch.ones(6, 4))

    assert not any(has_unbacked(node.meta.get("val")) for node in traced.graph.nodes)

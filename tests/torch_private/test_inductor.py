"""What is done to a graph before Inductor gets it."""

import pytest
import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from stepgraph.torch_private import FakeInputs, compile_inference


@pytest.fixture
def given(monkeypatch):
    """Return the graphs that Inductor gets, as they come; they run as they are."""
    graphs = []

    def compile_fx_inner(graph_module, inputs, **options):
        graphs.append(graph_module)
        graph_module.current_callable = lambda values: graph_module(*values)
        return graph_module

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", compile_fx_inner)
    return graphs


def compiled(function, *inputs):
    graph_module: GraphModule = make_fx(function)(*inputs)
    return compile_inference(graph_module, FakeInputs(inputs), [None] * len(function(*inputs)))


def test_a_backward_uses_what_the_forward_has_computed(given):
    def forward_and_backward(x, back):
        return 2 * torch.tanh(x + 1), back * (1 - torch.tanh(x + 1) ** 2)

    torch.manual_seed(0)
    inputs = list(torch.randn(2, 5))

    results = compiled(forward_and_backward, *inputs)(inputs)

    (graph_module,) = given
    tanh = torch.ops.aten.tanh.default
    assert len(graph_module.graph.find_nodes(op="call_function", target=tanh)) == 1
    expected = forward_and_backward(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_equal_results_stay_tensors_of_their_own(given):
    x = torch.randn(3)

    first, second = compiled(lambda x: (x + 1, x + 1), x)([x])

    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()

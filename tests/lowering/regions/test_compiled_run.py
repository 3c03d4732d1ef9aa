"""A compiled run: the trial before its compiled form is used."""

import torch
from torch.fx import Graph, GraphModule

from stepgraph.lowering import CompiledRun
from stepgraph.lowering.regions.inductor import threads_for


def doubling() -> GraphModule:
    """Return the graph of `x -> x + x`, which also adds 1 to `total`."""
    graph = Graph()
    x, total = graph.placeholder("x"), graph.placeholder("total")
    graph.call_function(torch.ops.aten.add_.Tensor, (total, 1))
    graph.output((graph.call_function(torch.ops.aten.add.Tensor, (x, x)),))
    return GraphModule({}, graph)


def region(compiled) -> CompiledRun:
    def eager(inputs):
        inputs[1].add_(1)
        return (inputs[0] + inputs[0],)

    return CompiledRun("region_0", doubling(), eager=eager, compiled=compiled, written=(1,))


def test_the_first_call_tries_the_compiled_form_on_copies_and_returns_eager_results():
    calls = []

    def compiled(inputs):
        calls.append(inputs[1].data_ptr())
        inputs[1].add_(1)
        return (inputs[0] * 2,)

    total, x = torch.zeros(()), torch.ones(3)
    tried = region(compiled)

    first = tried(x, total)
    second = tried(x, total)

    assert (tried.tried, tried.refusal) == (True, None)
    assert torch.equal(first[0], second[0])
    assert total.item() == 2
    assert calls[0] != total.data_ptr()
    assert calls[1] == total.data_ptr()


def test_wrong_results_are_refused_and_never_returned():
    def compiled(inputs):
        inputs[1].add_(1)
        return (inputs[0] * 3,)

    total, x = torch.zeros(()), torch.ones(3)
    tried = region(compiled)

    results = [tried(x, total)[0] for _ in range(3)]

    assert all(torch.equal(result, x * 2) for result in results)
    assert total.item() == 3
    assert "result 0 of 2 differs" in tried.refusal


def test_a_wrong_write_is_refused():
    def compiled(inputs):
        inputs[1].add_(2)
        return (inputs[0] * 2,)

    total = torch.zeros(())
    tried = region(compiled)
    tried(torch.ones(3), total)

    assert total.item() == 1
    assert "result 1 of 2 differs" in tried.refusal


def test_a_compiled_form_that_raises_is_refused():
    def compiled(inputs):
        raise RuntimeError("no such instruction")

    total = torch.zeros(())
    tried = region(compiled)

    (result,) = tried(torch.ones(3), total)

    assert torch.equal(result, torch.full((3,), 2.0))
    assert total.item() == 1
    assert "no such instruction" in tried.refusal


def test_a_result_that_shares_memory_with_an_input_is_refused():
    def compiled(inputs):
        inputs[1].add_(1)
        return (inputs[0].mul_(2) if inputs[0].data_ptr() else None,)

    tried = region(compiled)
    tried(torch.zeros(3), torch.zeros(()))

    assert "share memory" in tried.refusal


def test_a_trial_can_be_repeated():
    factor = 2

    def compiled(inputs):
        inputs[1].add_(1)
        return (inputs[0] * factor,)

    total, x = torch.zeros(()), torch.ones(3)
    tried = region(compiled)
    tried(x, total)
    factor = 5
    tried.try_again()

    (result,) = tried(x, total)

    assert torch.equal(result, x * 2)
    assert tried.refusal is not None


def test_autograd_notices_what_the_compiled_form_writes():
    def compiled(inputs):
        inputs[1].data.add_(1)  # as compiled code does: the version stays
        return (inputs[0] + inputs[0],)

    run = region(compiled)
    total = torch.zeros(())
    run(torch.ones(2), total)  # the trial
    before = total._version

    run(torch.ones(2), total)

    assert run.refusal is None
    assert total == 2
    assert total._version > before


def test_threads_share_only_long_loops():
    def like(*shape):
        graph = Graph()
        x = graph.placeholder("x")
        x.meta["val"] = torch.empty(shape, device="meta")
        graph.output((x,))
        return GraphModule({}, graph)

    assert threads_for(like(64, 64)) == 1
    assert threads_for(like(1 << 15)) is None


def test_results_with_other_strides_are_refused():
    def turned(inputs):
        inputs[1].add_(1)
        return ((inputs[0] * 2).t().contiguous().t(),)

    total = torch.zeros(())
    tried, of_a_row = region(turned), region(turned)

    (result,) = [tried(torch.ones(3, 2), total)[0] for _ in range(2)][1:]
    of_a_row(torch.ones(1, 2), total)

    assert result.stride() == (2, 1)
    assert tried.refusal == "result 0 of 1 has other strides than in eager"
    assert of_a_row.refusal is None

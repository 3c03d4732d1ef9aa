"""A step with an optimizer of the user's own is rehearsed up to its first update."""

import pytest
import torch
from torch import nn

import stepgraph
from stepgraph.passes import Pass, Pipeline


class OwnSGD(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"])


class Twice(Pass):
    """A wrong pass: doubles what the backward computes from."""

    def __call__(self, step):
        flat = step.take_flat()
        for node in flat.graph.nodes:
            if node.target is torch.ops.aten.ones_like.default:
                with flat.graph.inserting_after(node):
                    doubled = flat.graph.call_function(torch.ops.aten.mul.Tensor, (node, 2))
                doubled.meta = dict(node.meta)
                node.replace_all_uses_with(doubled)
                doubled.args = (node, 2)
        return stepgraph.StepGraph(flat)


def trained(passes, *, sets_rate):
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    optimizer = OwnSGD(net.parameters(), lr=0.1)

    @stepgraph.compile(on_fallback="silent", backend="eager", passes=passes)
    def step(x):
        optimizer.zero_grad()
        loss = net(x).mean()
        loss.backward()
        if sets_rate:
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 0.5
        optimizer.step()
        return loss

    for index in range(4):
        torch.manual_seed(index)
        step(torch.randn(4, 3))
    return step


@pytest.mark.parametrize("sets_rate", [False, True])
def test_a_right_program_is_used(sets_rate):
    step = trained(Pipeline(()), sets_rate=sets_rate)

    assert step.explain().replays == 2


@pytest.mark.parametrize("sets_rate", [False, True])
def test_a_wrong_gradient_is_found_ahead_of_the_first_update(sets_rate):
    step = trained(Pipeline((Twice(),)), sets_rate=sets_rate)

    assert step.explain().replays == 0
    assert "differs from eager" in step.explain().fallback_reason

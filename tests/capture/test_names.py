"""Names of inputs: as the author of the step would write them, and never the same for two."""

import pytest
import torch
from torch import nn

import stepgraph


def names_of(step):
    return [step.graphs[0].slot(n).name for n in step.graphs[0].nodes if n.op == "placeholder"]


class Trained:
    """A scale beside a network, both trained; another network of the same name elsewhere."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.optimizer = torch.optim.SGD([*self.net.parameters(), self.log_scale], lr=0.1)

    def step(self, x):
        self.optimizer.zero_grad()
        loss = (self.net(x) * self.log_scale.exp()).mean()
        loss.backward()
        self.optimizer.step()


def test_a_parameter_that_is_no_modules_has_the_name_of_its_attribute():
    trained = Trained()
    step = stepgraph.compile(on_fallback="error")(trained.step)
    for _ in range(2):
        step(torch.randn(4, 3))

    assert sorted(names_of(step)) == ["log_scale", "net.bias", "net.weight", "x"]


def of_two_networks(decorate):
    """One network is an attribute called `net`, the other a closure variable called `net`."""
    torch.manual_seed(0)
    net = nn.Linear(3, 3)

    class Owner:
        def __init__(self):
            self.net = nn.Linear(3, 1)
            parameters = [*net.parameters(), *self.net.parameters()]
            self.optimizer = torch.optim.SGD(parameters, lr=0.1)

        @decorate
        def step(self, x):
            self.optimizer.zero_grad()
            loss = self.net(net(x).tanh()).mean()
            loss.backward()
            self.optimizer.step()
            return loss

    return Owner(), net


@pytest.mark.parametrize("bucket_bytes", [1, 4 * 2**20])
def test_two_tensors_never_share_a_name(bucket_bytes):
    passes = stepgraph.passes.Pipeline((stepgraph.passes.EarlyUpdate(bucket_bytes),))
    decorate = stepgraph.compile(on_fallback="error", keep_grads=False, passes=passes)
    (mine, inner), (own, own_inner) = of_two_networks(decorate), of_two_networks(lambda f: f)
    for index in range(4):
        torch.manual_seed(index)
        x = torch.randn(4, 3)
        assert torch.equal(mine.step(x), own.step(x))

    names = names_of(mine.step)
    assert len(set(names)) == len(names) == 5
    theirs = [*own.net.parameters(), *own_inner.parameters()]
    for p, q in zip([*mine.net.parameters(), *inner.parameters()], theirs, strict=True):
        assert torch.equal(p, q)

"""Float32 masters of low-precision parameters, against the same training in float32."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW

from stepgraph.lowering.updates.cpu import FusedUpdate
from stepgraph.lowering.updates.master_weights import Masters

LOW = torch.bfloat16
OPTIMIZERS = [
    lambda params: AdamW(params, lr=1e-3, amsgrad=True),
    lambda params: Adam(params, lr=1e-3),
    lambda params: SGD(params, lr=1e-3, momentum=0.9),
    lambda params: SGD(params, lr=1e-3),
    lambda params: Adagrad(params, lr=1e-3),
]


def gradient(index, like):
    torch.manual_seed(index)
    return torch.randn(like.shape).to(LOW) + 1


class Weight:
    """A parameter in bfloat16, updated on masters."""

    def __init__(self, make):
        self.masters = Masters()
        self.param = nn.Parameter(torch.linspace(0.5, 2, 7).to(LOW))
        self.optimizer = make([self.param])
        self.update = FusedUpdate(self.optimizer, self.masters)

    @torch.no_grad()
    def step(self, index, factor=None):
        self.param.grad = gradient(index, self.param)
        if factor is None:
            self.update()
        else:
            self.update.clipped(factor)


def in_float32(weight, make):
    """Return what weight and state are now in float32, on an optimizer of its own."""
    (master,) = weight.masters.of([weight.param])
    param = nn.Parameter(master.clone())
    optimizer = make([param])
    for name, value in weight.optimizer.state[weight.param].items():
        optimizer.state[param][name] = weight.masters.of([value])[0].clone()
    return param, optimizer


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("factor", [None, torch.tensor(0.5)])
def test_updates_add_up_as_in_float32(make, factor):
    weight = Weight(make)
    weight.step(0)  # makes the state
    weight.step(1)  # the trial, in bfloat16
    param, optimizer = in_float32(weight, make)

    for index in range(2, 60):
        weight.step(index, factor)
        param.grad = gradient(index, param).mul(1 if factor is None else factor).float()
        optimizer.step()

    assert weight.update.why_not() is None
    assert not torch.equal(param.detach().to(LOW), torch.linspace(0.5, 2, 7).to(LOW))
    (master,) = weight.masters.of([weight.param])
    torch.testing.assert_close(master, param.detach())
    assert torch.equal(weight.param.detach(), master.to(LOW))
    for name, value in weight.optimizer.state[weight.param].items():
        expected = optimizer.state[param][name]
        torch.testing.assert_close(*weight.masters.of([value]), expected)
        assert value.dtype is (torch.float32 if name == "step" else LOW)


def test_parts_of_an_update_share_the_masters():
    weight = Weight(OPTIMIZERS[0])
    weight.step(0)
    whole = weight.update
    weight.update = whole.part([0], last=True)
    for index in range(1, 20):
        weight.step(index)
    (part_master,) = weight.masters.of([weight.param])
    weight.update = whole
    for index in range(20, 22):  # the first of them is the trial of the whole update
        weight.step(index)

    assert part_master.dtype is torch.float32
    assert not torch.equal(part_master, part_master.to(LOW).float())
    assert weight.update.why_not() is None


def test_without_masters_the_same_updates_round_away():
    make = OPTIMIZERS[3]
    weight, plain = Weight(make), Weight(make)
    plain.update = FusedUpdate(plain.optimizer)

    for index in range(40):
        weight.step(index)
        plain.step(index)

    assert torch.equal(plain.param.detach()[-1:], torch.tensor([2.0], dtype=LOW))
    assert weight.masters.of([weight.param])[0][-1] < 2


def loads_a_state_dict(param):
    nn.Module.load_state_dict(Holder(param), {"weight": param.detach().clone()})


class Holder(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight


def writes_data(param):
    param.data[0] = 3.0


def writes_in_place(param):
    with torch.no_grad():
        param.mul_(1.0)


@pytest.mark.parametrize("write", [loads_a_state_dict, writes_data, writes_in_place])
def test_a_weight_that_somebody_else_wrote_begins_from_what_it_is(write):
    masters, param = Masters(), nn.Parameter(torch.ones(2, dtype=LOW))
    with torch.no_grad():
        masters.round_into([param], [torch.tensor([1.001, 1.001])])
    assert masters.of([param])[0].tolist() == pytest.approx([1.001, 1.001])

    write(param)

    assert torch.equal(masters.of([param])[0], param.detach().float())


def test_masters_end_with_their_tensors():
    masters, param = Masters(), torch.ones(2, dtype=LOW)
    masters.round_into([param], [torch.ones(2)])
    ended = weakref.ref(masters.of([param])[0])
    assert ended() is not None

    del param
    gc.collect()

    assert ended() is None


def test_a_float32_tensor_is_its_own_master():
    masters, weight = Masters(), torch.ones(2)

    (master,) = masters.of([weight])
    masters.round_into([weight], [master])

    assert master is weight

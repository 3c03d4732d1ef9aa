"""Averages of weights, against `update_parameters` on a twin: bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from stepgraph.effects import UpdateAverage


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _custom(averages, params, count):
    torch._foreach_copy_(averages, params)


AVERAGES = {
    "exponential": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "exponential, one by one": {"avg_fn": get_ema_avg_fn(0.9)},
    "equal": {},
    "with buffers": {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True},
    "of the user's": {"multi_avg_fn": _custom},
}


def _follow(mine, own, net, calls=4):
    """Update one average by what is tested, its twin by its own method; return what was called."""
    update = UpdateAverage(mine)
    for _ in range(calls):
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor))
            update(list(net.parameters()), list(net.buffers()))
        own.update_parameters(net)


def _equal(mine, own):
    pairs = zip(mine.state_dict().items(), own.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("options", AVERAGES.values(), ids=AVERAGES)
def test_every_kind_of_average_is_what_its_method_leaves(options):
    net = _net()
    mine, own = AveragedModel(net, **options), AveragedModel(net, **options)

    _follow(mine, own, net)

    assert mine.n_averaged == 4
    assert _equal(mine, own)


def test_an_exponential_average_is_one_call_after_the_first(monkeypatch):
    net = _net()
    mine = AveragedModel(net, **AVERAGES["exponential"])
    calls = []
    real = AveragedModel.update_parameters
    monkeypatch.setattr(AveragedModel, "update_parameters", lambda *args: calls.append(real(*args)))
    update = UpdateAverage(mine)

    for _ in range(3):
        with torch.no_grad():
            update(list(net.parameters()), list(net.buffers()))

    assert len(calls) == 1  # copies the weights


def test_an_average_in_another_precision_is_left_to_the_method():
    net = _net()
    mine = AveragedModel(net, **AVERAGES["exponential"]).to(torch.float64)
    own = copy.deepcopy(mine)

    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype") as ours:
        _follow(mine, mine, net, calls=2)
    own.update_parameters(net)
    with pytest.raises(RuntimeError, match="dtype") as theirs:
        own.update_parameters(net)

    assert str(ours.value) == str(theirs.value)


def test_a_method_that_was_replaced_is_called():
    net = _net()
    mine = AveragedModel(net, **AVERAGES["exponential"])
    calls = []
    mine.update_parameters = lambda model: calls.append(next(model.parameters()))

    with torch.no_grad():
        UpdateAverage(mine)(list(net.parameters()), list(net.buffers()))

    assert len(calls) == 1
    assert calls[0] is net[0].weight


def test_averages_share_no_version_with_what_backward_has_saved():
    net = _net()
    mine = AveragedModel(net, **AVERAGES["exponential"])
    update = UpdateAverage(mine)
    args = list(net.parameters()), list(net.buffers())
    with torch.no_grad():
        update(*args)
    loss = mine.module[0](torch.ones(1, 3, requires_grad=True)).sum()

    with torch.no_grad():
        update(*args)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_torchs_exponential_average_is_still_known():
    assert UpdateAverage(AveragedModel(_net(), **AVERAGES["exponential"]))._decay() == 0.9

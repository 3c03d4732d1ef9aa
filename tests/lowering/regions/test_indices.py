"""Indices are checked before compiled code uses them."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from stepgraph.lowering.regions.indices import Bound, bounds, uses


def of(function, *inputs):
    """Return what a region of these operators asks of its inputs."""
    return set(bounds(make_fx(function, tracing_mode="fake")(*inputs)))


TABLE, ROWS = torch.randn(10, 4), torch.tensor([1, 2, 3])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda t, i: F.embedding(i, t), Bound(1, 0, 10, None)),
        (lambda t, i: t[i.view(3, 1)], Bound(1, -10, 10, None)),
        (lambda t, i: t[:, i], Bound(1, -4, 4, None)),
        (lambda t, i: t.index_select(1, i), Bound(1, 0, 4, None)),
        (lambda t, i: t.gather(0, i[:, None]), Bound(1, 0, 10, None)),
        (lambda t, i: F.nll_loss(t[:3], i, ignore_index=7), Bound(1, 0, 4, 7)),
        (lambda t, i: t.clone().index_add_(0, i, t[:3]), Bound(1, 0, 10, None)),
        (lambda t, i: t.scatter(1, i[:, None], 0.0), Bound(1, 0, 4, None)),
        (lambda t, i: t.take(i), Bound(1, -40, 40, None)),
        (lambda t, i: t.clone().put_(i, t[0, :3]), Bound(1, -40, 40, None)),
        (lambda t, i: F.max_unpool2d(t[None, :1, :3], i.view(1, 1, 3), 2), Bound(1, 0, 12, None)),
    ],
)
def test_every_index_has_the_bounds_of_what_it_indexes(function, expected):
    assert of(function, TABLE, ROWS) == {expected}


def test_a_one_hot_asks_for_its_classes():
    graph = Graph()
    classes = graph.placeholder("classes")
    classes.meta["val"] = ROWS
    rows = graph.call_function(torch.ops.aten.one_hot.default, (classes, 10))
    rows.meta["val"] = F.one_hot(ROWS, 10)
    graph.output((rows,))

    assert set(bounds(GraphModule({}, graph))) == {Bound(0, 0, 10, None)}


def test_a_step_without_indices_asks_nothing():
    assert of(lambda t, i: t * i.sum(), TABLE, ROWS) == set()


def test_an_index_that_is_computed_cannot_be_checked():
    with pytest.raises(ValueError, match="computes"):
        of(lambda t, i: t[i + 1], TABLE, ROWS)


@pytest.mark.parametrize(
    ("values", "holds"),
    [([0, 9], True), ([0, 10], False), ([-1], False), ([-100, 3], True), ([-100, 10], False)],
)
def test_a_bound_knows_values_to_ignore(values, holds):
    assert Bound(0, 0, 10, -100).holds([torch.tensor(values)]) is holds


def test_no_values_are_no_wrong_values():
    assert Bound(0, 0, 1, None).holds([torch.zeros(0, dtype=torch.int64)])


def test_indices_on_a_gpu_are_left_to_the_device():
    def indices(device):
        graph = Graph()
        table, rows = graph.placeholder("table"), graph.placeholder("rows")
        with FakeTensorMode():
            table.meta["val"] = torch.empty(10, 4, device=device)
            rows.meta["val"] = torch.empty(3, dtype=torch.int64, device=device)
        return uses(graph.call_function(torch.ops.aten.embedding.default, (table, rows)))

    assert len(indices("cpu")) == 1
    assert indices("cuda") == []


@pytest.mark.parametrize(
    "divide",
    [
        lambda t, i: t * (i // i.flip(0)).sum(),
        lambda t, i: t * torch.div(i, i.flip(0), rounding_mode="trunc").sum(),
        lambda t, i: t * (i % i.flip(0)).sum(),
        lambda t, i: t * i.clone().fmod_(i.flip(0)).sum(),
        lambda t, i: t * (7 % i).sum(),
    ],
)
def test_integers_divided_by_a_tensor_stay_eager(divide):
    with pytest.raises(ValueError, match="divided by a tensor"):
        of(divide, TABLE, ROWS)


def test_other_divisions_ask_nothing():
    assert of(lambda t, i: t / (i // 2).sum() % (i / 3).sum(), TABLE, ROWS) == set()

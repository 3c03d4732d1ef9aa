"""Operators that look at values before they compute raise in a captured step what eager raises."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support.harness import assert_captured, draw, draw_labels, mlp
from support.raising_programs import assert_recovers, failing


@dataclasses.dataclass
class Case:
    """An operator, and what it is given: `operate(hidden, given)` with `[8, 4]` probabilities."""

    operate: Callable[[Tensor, Tensor], Tensor]
    good: Callable[[int], Tensor]
    bad: Callable[[Tensor], Tensor]
    error: str = "RuntimeError"


class World:
    """Two models; the first one has updated when the operator of the second one raises."""

    def __init__(self):
        self.first, self.second = mlp(outputs=4), mlp(outputs=4)
        self.opt1 = torch.optim.Adam(self.first.parameters(), lr=0.01)
        self.opt2 = torch.optim.Adam(self.second.parameters(), lr=0.01)
        self.norm = nn.BatchNorm1d(4)


def program(case):
    """A program whose second half raises in the bad calls."""

    def step_of(world):
        def step(x, given):
            world.opt1.zero_grad()
            hidden = world.norm(world.first(x)).softmax(1)
            hidden.square().mean().backward()
            world.opt1.step()
            world.opt2.zero_grad()
            loss = case.operate(world.second(x).softmax(1), given).square().mean()
            loss.backward()
            world.opt2.step()
            return loss

        return step

    def batch(index, bad):
        given = case.good(index)
        return draw(8, 4, seed=index), case.bad(given) if bad else given

    return failing(World, step_of, batch)


def labels(index):
    return draw_labels(8, below=4, seed=index)


def probabilities(index):
    return draw(8, 4, seed=index).softmax(1)


def shares(index):
    return draw(3, seed=index).sigmoid()


def matrix(index):
    return torch.eye(4) * (index + 1)


def too_high(given):
    return given.index_fill(0, torch.tensor([5]), 4)


def negative(given):
    return given.index_fill(0, torch.tensor([5]), -1)


class Chosen(torch.autograd.Function):
    """The scores of the chosen classes, with a backward of its own."""

    @staticmethod
    def forward(ctx, scores, chosen):
        rows = F.one_hot(chosen, 4)
        ctx.save_for_backward(rows)
        return scores * rows

    @staticmethod
    def backward(ctx, gradient):
        (rows,) = ctx.saved_tensors
        return gradient * rows, None


def in_a_checkpoint(scores, chosen):
    return checkpoint(lambda s, c: s * F.one_hot(c, 4), scores, chosen, use_reentrant=False)


ONE_HOT = {
    "function": lambda h, i: h * F.one_hot(i, 4),
    "operator": lambda h, i: h * torch.ops.aten.one_hot(i, 4),
    "overload": lambda h, i: h * torch.ops.aten.one_hot.default(i, num_classes=4),
    "computed": lambda h, i: h * F.one_hot((i + 1) - 1, 4),
    "checkpoint": in_a_checkpoint,
    "autograd function": Chosen.apply,
}


@pytest.mark.parametrize("operate", ONE_HOT.values(), ids=ONE_HOT)
def test_one_hot_of_a_class_that_is_not_there_raises(operate):
    assert_captured(assert_recovers(program(Case(operate, labels, too_high)), "RuntimeError"))


def test_one_hot_of_a_negative_class_raises():
    case = Case(lambda h, i: h * F.one_hot(i, 4), labels, negative)

    assert_captured(assert_recovers(program(case), "RuntimeError"))


def test_one_hot_raises_for_batches_of_any_size():
    def some(index):
        return draw_labels(8 - index % 3, below=4, seed=index)

    case = Case(lambda h, i: h[: len(i)] * F.one_hot(i, 4), some, too_high)

    step = assert_recovers(program(case), "RuntimeError")

    assert_captured(step)
    assert step.explain().captures == 2


def test_one_hot_under_vmap_does_not_look_at_values_as_in_eager():
    rows = torch.vmap(lambda i: F.one_hot(i, 4))
    make = program(Case(lambda h, i: h * rows(i), labels, too_high))

    with pytest.raises(AssertionError, match="raised only"):
        assert_recovers(make)


CASES = {
    "bincount": Case(lambda h, i: h * torch.bincount(i, minlength=4), labels, negative),
    "cross_entropy": Case(F.cross_entropy, labels, negative, "IndexError"),
    "label_smoothing": Case(
        lambda h, i: F.cross_entropy(h, i, label_smoothing=0.1), labels, too_high, "IndexError"
    ),
    "multi_margin_loss": Case(F.multi_margin_loss, labels, too_high),
    "multilabel_margin_loss": Case(
        lambda h, i: F.multilabel_margin_loss(h[0], i[:4]), labels, lambda i: i + 4
    ),
    "binary_cross_entropy": Case(F.binary_cross_entropy, probabilities, lambda p: p + 1),
    "binary_cross_entropy of scores": Case(
        lambda h, p: F.binary_cross_entropy(h * p.sum() / 8, p), probabilities, lambda p: p * 40
    ),
    "multinomial": Case(lambda h, p: h[:, :2] * torch.multinomial(p, 2), probabilities, torch.neg),
    "bernoulli": Case(lambda h, p: h * torch.bernoulli(p), probabilities, lambda p: p + 1),
    "normal": Case(lambda h, p: h * torch.normal(0.0, p), probabilities, torch.neg),
    "poisson": Case(lambda h, p: h * torch.poisson(p), probabilities, torch.neg),
    "embedding_bag": Case(
        lambda h, i: F.embedding_bag(i.view(4, 2), h[:4], mode="sum"), labels, too_high
    ),
    "max_unpool2d": Case(
        lambda h, i: F.max_unpool2d(h[:2].view(2, 1, 2, 2), i.view(2, 1, 2, 2), 2),
        labels,
        lambda i: i + 16,
    ),
    "gather": Case(lambda h, i: h.gather(1, i[:, None]), labels, too_high),
    "scatter_add": Case(
        lambda h, i: torch.zeros(8, 4).scatter_add(1, i[:, None], h[:, :1]), labels, too_high
    ),
    "take": Case(lambda h, i: h.take(i), labels, lambda i: i + 40, "IndexError"),
    "solve": Case(
        lambda h, m: torch.linalg.solve(m, h.T), matrix, torch.zeros_like, "_LinAlgError"
    ),
    "repeat_interleave": Case(
        lambda h, i: h.repeat_interleave(i * 0 + 2 + i // 9, 0, output_size=16),
        labels,
        lambda i: i + 9,
    ),
    "quantile": Case(lambda h, q: torch.quantile(h, q, 0), shares, lambda q: -q / 99),
    "quantile of a tensor": Case(lambda h, q: h.quantile(q, dim=0), shares, lambda q: q + 1),
    "nanquantile": Case(lambda h, q: h.nanquantile(q, 0), shares, lambda q: q / 0 * 0),
    "division": Case(lambda h, i: h * (7 // (i[:4] + 1)), labels, lambda i: i * 0 - 1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_value_that_an_operator_cannot_take_raises_as_in_eager(case):
    assert_captured(assert_recovers(program(case), case.error))

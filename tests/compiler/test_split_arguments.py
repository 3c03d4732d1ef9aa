"""microbatches=n: which arguments are split, which are whole, and which are refused."""

import collections
import dataclasses
import inspect
import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stepgraph
from stepgraph import Microbatches
from stepgraph.capture.call_scope import globals_in
from stepgraph.capture.options.microbatches import check_batch
from stepgraph.capture.options.split_loop import before_each_part, looped
from stepgraph.errors import ConfigurationError
from support.harness import assert_captured, mlp, regression


@dataclasses.dataclass
class Record:
    x: Any
    name: str = ""


Pair = collections.namedtuple("Pair", "x y")


def rows(size):
    """Strategies of values that are split, for a batch of that size."""
    tensors = st.sampled_from([(size,), (size, 3), (size, 2, 2)]).map(torch.randn)
    whole = st.sampled_from([None, 3, 0.5, "text", torch.float32, torch.tensor(2.0)])
    return st.recursive(
        tensors | whole | st.just(torch.randn(1, 3)),
        lambda inner: (
            st.tuples(inner, inner)
            | st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
            | st.builds(Record, inner)
            | st.builds(Pair, inner, inner)
        ),
        max_leaves=4,
    )


@given(st.data(), st.integers(1, 9), st.integers(2, 5))
def test_the_parts_of_the_arguments_are_the_batch(data, size, count):
    value, other = data.draw(rows(size)), torch.arange(size)
    seen = []

    def step(anchor, /, value, *rest, key, **others):
        assert rest[0] is not None
        seen.append([anchor, value, *rest, key, others["more"]])
        return anchor

    loop = looped(step, Microbatches(count))
    places = []
    with before_each_part(places.append):
        result = loop(other, value, other * 2, key=value, more=[value])

    assert torch.equal(result, other)
    assert len(seen) == len(places) == max(1, min(count, size))
    for part in seen:
        assert [type(item) for item in part] == [type(item) for item in seen[0]]
    whole = [other, value, other * 2, value, [value]]
    assert_parts_are(seen, whole, size)
    sizes = [len(part[0]) for part in seen]
    assert max(sizes) - min(sizes) <= 1
    assert sum(place.size / place.total for place in places) == pytest.approx(1)


def assert_parts_are(parts, whole, size):
    """Assert that each tensor of a batch is that of its parts in a row, and all else is whole."""
    if isinstance(whole, torch.Tensor):
        if whole.dim() and len(whole) == size:
            assert torch.equal(torch.cat(list(parts)), whole)
        else:
            assert all(part is whole for part in parts)
    elif isinstance(whole, Record):
        assert_parts_are([part.x for part in parts], whole.x, size)
        assert all(part.name == whole.name for part in parts)
    elif isinstance(whole, tuple | list | dict):
        for key in whole if isinstance(whole, dict) else range(len(whole)):
            assert_parts_are([part[key] for part in parts], whole[key], size)
    else:
        assert all(part is whole for part in parts)


class Owner:
    """An object with a step that is a method, called with a record."""

    def __init__(self, net):
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def loss(self, out, y, weights):
        return (weights[:2] * (out - y).square()).mean()


class Trained(Owner):
    @stepgraph.compile(microbatches=Microbatches(2, whole=("weights",)))
    def step(self, batch, *, weights, flag=True):
        loss = super().loss(self.net(batch.x[0]), batch.x[1]["y"], weights)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Pair(loss, None) if flag else None


def test_a_method_that_is_given_a_record_is_captured():
    net, other = mlp(), mlp()
    other.load_state_dict(net.state_dict())
    trained, owner = Trained(net), Owner(other)
    weights = torch.arange(6.0)  # as many as there are samples

    for index in range(3):
        x, y = regression(index)
        result = trained.step(Record((x, {"y": y})), weights=weights)
        owner.optimizer.zero_grad()
        parts = zip(x.split(3), y.split(3), strict=True)
        losses = [owner.loss(other(a), b, weights) / 2 for a, b in parts]
        sum(losses).backward()
        owner.optimizer.step()
        assert torch.equal(result.x, losses[0] + losses[1])

    assert_captured(trained.step)
    assert all(map(torch.allclose, net.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((1, 2), "no tensor"),
        ((torch.ones(4, 2), torch.ones(3)), "3 along dim 0, and 4 in `x`"),
        ((torch.ones(4), object()), "argument `y`"),
        ((torch.ones(4), [1, 2, 3, 4]), "list of 4 values"),
        ((torch.ones(4), {"a": [torch.ones(5)]}), r"y\['a'\]\[0\]"),
        ((nn.Parameter(torch.ones(4)), 1), "no tensor"),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused_by_the_name_of_the_argument(args, words):
    def step(x, y):
        raise AssertionError("runs nothing")

    with pytest.raises(ConfigurationError, match=words):
        stepgraph.compile(step, microbatches=2)(*args)


def test_arguments_that_no_sample_owns_are_passed_whole():
    def step(x, model, kind, sizes, scale):
        pass

    args = (torch.ones(4), mlp(), torch.float32, [4], torch.ones(1, 3))

    check_batch(step, args, {}, Microbatches(2))


def test_a_batch_of_one_sample_is_passed_as_it_is():
    scale, weight = torch.tensor(2.0), nn.Parameter(torch.ones(3))

    def step(x, *others):
        assert all(map(operator.is_, others, (scale, weight)))
        return x

    with before_each_part(lambda part: None):
        result = looped(step, Microbatches(4))(torch.ones(1, 2), scale, weight)

    assert torch.equal(result, torch.ones(1, 2))


def test_the_loop_looks_like_the_step_to_whoever_asks():
    def step(x, /, y=2, *rest, key: int = 3, **others):
        return Record(x), mlp, World

    loop, World = looped(step, Microbatches(2)), None  # noqa: N806  (a closure variable)

    assert list(inspect.signature(loop).parameters) == list(inspect.signature(step).parameters)
    assert loop.__defaults__ == (2,)
    assert loop.__kwdefaults__ == {"key": 3}
    assert loop.__closure__ == step.__closure__
    assert loop.__qualname__ == step.__qualname__
    assert globals_in(loop, {}) == globals_in(step, {}) == {"Record": Record, "mlp": mlp}
    assert loop.__code__.co_firstlineno == step.__code__.co_firstlineno


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2"])
def test_a_number_of_parts_that_is_none_is_refused(value):
    with pytest.raises(ConfigurationError, match="microbatches"):
        stepgraph.compile(lambda x: None, microbatches=value)


def test_what_is_to_stay_whole_must_be_an_argument():
    with pytest.raises(ConfigurationError, match="`z`"):
        stepgraph.compile(lambda x: None, microbatches=Microbatches(2, whole=("z",)))
    with pytest.raises(ConfigurationError, match="tuple of names"):
        Microbatches(2, whole="x")


def test_one_part_is_the_plain_step():
    step = stepgraph.compile(lambda x: x, microbatches=Microbatches(1))

    assert step(3) == 3

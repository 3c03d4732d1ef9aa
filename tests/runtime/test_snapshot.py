"""Snapshot: what belongs to it, that `restore` puts all of it back, what `difference` names."""

import copy
from collections import OrderedDict, deque
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stepgraph.runtime.snapshot import Snapshot, same


def owner(**attributes):
    return SimpleNamespace(**attributes)


def of_owner(value):
    return Snapshot({}, {"it": value})


def of_tensor(value):
    return Snapshot({"w": value}, {})


def flipped(tensor):
    """Change one bit of the first element."""
    bits = tensor.detach().view(-1).view(torch.int32)
    bits[0] ^= 1


def test_a_tensor_gets_its_bits_back_in_its_own_memory():
    weight = torch.randn(3, 2)
    before, memory = weight.clone(), weight.data_ptr()
    taken = of_tensor(weight)

    weight.mul_(2)
    taken.restore()

    assert torch.equal(weight, before)
    assert weight.data_ptr() == memory


@pytest.mark.parametrize("changed", [3.0, 0.0, float("nan")])
@pytest.mark.parametrize("number", [0.0, -0.0, float("nan"), float("inf"), 1e-45])
def test_special_numbers_are_put_back(number, changed):
    weight = torch.full((2,), number)
    before = weight.view(torch.int32).clone()
    taken = of_tensor(weight)

    weight.fill_(changed)
    taken.restore()

    assert torch.equal(weight.view(torch.int32), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_the_sign_of_zero_is_put_back_in_every_dtype(dtype):
    weight = torch.tensor([-0.0, 1.0]).to(dtype)
    taken = of_tensor(weight.t())

    weight.abs_() if dtype.is_floating_point else weight.zero_()
    taken.restore()

    assert str(weight) == str(torch.tensor([-0.0, 1.0]).to(dtype))


def test_a_tensor_that_has_not_changed_is_not_written():
    weight = torch.tensor([1.0, float("nan"), -0.0])
    taken, version = of_tensor(weight), weight._version

    taken.restore()

    assert weight._version == version


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int64, torch.bool],
)
def test_every_dtype_is_put_back_and_compared(dtype):
    weight = torch.tensor([0, 1, 1]).to(dtype)
    taken, before = of_tensor(weight), weight.clone()

    weight.copy_(torch.tensor([1, 0, 1]))
    changed = of_tensor(weight)
    taken.restore()

    assert torch.equal(weight, before)
    assert changed.difference(taken) == "w"
    assert of_tensor(weight).difference(taken) is None


def test_an_expanded_tensor_is_put_back():
    once = torch.randn(1, 3)
    expanded, before = once.expand(4, 3), once.clone()
    taken = of_tensor(expanded)

    once.add_(1)
    taken.restore()

    assert torch.equal(once, before)


def test_a_transposed_tensor_and_a_view_of_a_part_are_put_back():
    whole = torch.randn(4, 4)
    before = whole.clone()
    taken = Snapshot({"left": whole.t()[1:], "right": whole[:, 2]}, {})

    whole.t()[1:].zero_()
    taken.restore()

    assert torch.equal(whole, before)


def test_a_gradient_that_was_there_is_put_back_by_identity_and_bits():
    weight = nn.Parameter(torch.randn(3))
    weight.grad = grad = torch.randn(3)
    before = grad.clone()
    taken = of_tensor(weight)

    grad.mul_(2)
    weight.grad = torch.zeros(3)
    taken.restore()

    assert weight.grad is grad
    assert torch.equal(grad, before)


def test_a_gradient_that_was_not_there_is_taken_away():
    weight = nn.Parameter(torch.randn(3))
    taken = of_tensor(weight)

    weight.sum().backward()
    taken.restore()

    assert weight.grad is None


def test_a_gradient_that_was_dropped_is_put_back():
    weight = nn.Parameter(torch.randn(3))
    weight.grad = grad = torch.randn(3)
    taken = of_tensor(weight)

    weight.grad = None
    taken.restore()

    assert weight.grad is grad


@pytest.mark.parametrize("flag", [True, False])
def test_requires_grad_is_put_back(flag):
    weight = nn.Parameter(torch.randn(3), requires_grad=flag)
    taken = of_tensor(weight)

    weight.requires_grad_(not flag)
    taken.restore()

    assert weight.requires_grad is flag


def test_a_parameter_that_was_frozen_and_written_gets_both_back():
    weight = nn.Parameter(torch.randn(3))
    before = weight.detach().clone()
    taken = of_tensor(weight)

    weight.requires_grad_(False)
    weight.add_(1)
    taken.restore()

    assert weight.requires_grad
    assert torch.equal(weight.detach(), before)


def test_a_result_with_a_history_is_put_back_without_a_gradient_of_its_own():
    weight = nn.Parameter(torch.randn(3))
    hidden = weight * 2
    before = hidden.detach().clone()
    taken = of_tensor(hidden)

    with torch.no_grad():
        hidden.add_(1)
    taken.restore()

    assert torch.equal(hidden.detach(), before)
    assert hidden.grad_fn is not None
    assert not any("grad" in path for path in taken.values)


CONTAINERS = {
    "dict": lambda: {"a": 1, 2: "b"},
    "ordered dict": lambda: OrderedDict(a=1, b=2),
    "list": lambda: [1, 2.5, None, "c", True],
    "deque": lambda: deque([1, 2, 3]),
    "dict in a list in a dict": lambda: {"a": [{"b": 1}]},
    "list in a tuple": lambda: ([1, 2], 3),
}


def emptied(value):
    """Empty a container and those in it, in place."""
    for item in list(value.values() if isinstance(value, dict) else value):
        if isinstance(item, dict | list | tuple | deque):
            emptied(item)
    if not isinstance(value, tuple):
        value.clear()


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_get_their_items_back_and_stay_the_same_objects(name):
    value = CONTAINERS[name]()
    expected, holder = copy.deepcopy(value), owner(value=value)
    taken = of_owner(holder)

    emptied(value)
    taken.restore()

    assert holder.value is value
    assert value == expected
    assert list(value) == list(expected)  # the order of keys too


def test_what_was_added_to_a_container_is_taken_out():
    holder = owner(table={"a": 1}, row=[1], queue=deque([1]))
    taken = of_owner(holder)

    holder.table["b"], holder.extra = 2, 3
    holder.row.append(2)
    holder.queue.append(2)
    taken.restore()

    assert vars(holder) == {"table": {"a": 1}, "row": [1], "queue": deque([1])}


def test_an_attribute_that_was_replaced_or_deleted_is_the_old_object_again():
    row = [1, 2]
    holder = owner(row=row, number=1.5, text="a")
    taken = of_owner(holder)

    holder.row, holder.number = [3], 2.5
    del holder.text
    taken.restore()

    assert holder.row is row
    assert (holder.number, holder.text) == (1.5, "a")


def test_the_order_of_attributes_is_put_back():
    holder = owner(a=1, b=2)
    taken = of_owner(holder)

    del holder.a
    holder.a = 1
    taken.restore()

    assert list(vars(holder)) == ["a", "b"]


def test_containers_keep_the_items_that_belong_to_no_snapshot():
    model, state = nn.Linear(2, 2), object()
    holder = owner(things=[model, state], by_name={"model": model})
    taken = of_owner(holder)

    holder.things.clear()
    holder.by_name["model"] = None
    taken.restore()

    assert holder.things[0] is model
    assert holder.things[1] is state
    assert holder.by_name["model"] is model
    assert not any("weight" in path for path in taken.values)


def test_a_container_that_two_paths_share_is_one_container_afterwards():
    shared = [1, 2]
    holder = owner(left=shared, right={"same": shared})
    taken = of_owner(holder)

    shared.append(3)
    holder.right["same"] = [1, 2]
    taken.restore()

    assert holder.left is shared
    assert holder.right["same"] is shared
    assert shared == [1, 2]


def test_containers_that_hold_themselves_are_put_back():
    row = [1]
    row.append(row)
    holder = owner(row=row)
    taken = of_owner(holder)

    row.clear()
    taken.restore()

    assert row[0] == 1
    assert row[1] is row


def test_a_tensor_under_two_names_is_put_back_once():
    weight = nn.Parameter(torch.randn(3))
    before = weight.detach().clone()
    taken = Snapshot({"tied": weight, "also": weight}, {"it": owner(list=[weight])})

    with torch.no_grad():
        weight.zero_()
    taken.restore()

    assert torch.equal(weight.detach(), before)
    assert {path.split(".")[0] for path in taken.values} == {"tied"}


OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, history_size=3),
}


def state_of(optimizer):
    """The tensors of an optimizer's state with copies of their bits, in order."""
    found = []
    for state in optimizer.state.values():
        for key, value in state.items():
            values = value if isinstance(value, list) else [value]
            found += [(key, v, v.clone() if isinstance(v, torch.Tensor) else v) for v in values]
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_the_state_of_an_optimizer_is_put_back(name, steps):
    net = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](net.parameters())
    x = torch.randn(5, 3)

    def closure():
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    def step():
        closure()
        optimizer.step(closure)

    for _ in range(steps):
        step()
    state, weights = state_of(optimizer), [p.detach().clone() for p in net.parameters()]
    taken = Snapshot(dict(net.named_parameters()), {"opt": optimizer})

    step()
    optimizer.param_groups[0]["lr"] = 0.5
    taken.restore()

    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(state_of(optimizer)) == len(state)
    for (key, value, bits), (now_key, now, now_bits) in zip(
        state, state_of(optimizer), strict=True
    ):
        assert key == now_key
        assert now is value or not isinstance(value, torch.Tensor)
        assert torch.equal(now_bits, bits) if isinstance(bits, torch.Tensor) else now_bits == bits
    assert all(map(torch.equal, weights, net.parameters()))


def test_schedulers_inside_a_scheduler_are_put_back():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    parts = [
        torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=2),
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    ]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [2])
    taken = Snapshot({}, {"opt": optimizer, "schedule": schedule})
    before = copy.deepcopy([schedule.state_dict(), optimizer.state_dict()])
    optimizer.step()  # or the schedule warns

    for _ in range(4):
        schedule.step()
    assert [schedule.state_dict(), optimizer.state_dict()] != before
    taken.restore()

    assert [schedule.state_dict(), optimizer.state_dict()] == before
    assert schedule._schedulers[1] is parts[1]


def test_two_snapshots_of_what_has_not_changed_are_the_same():
    net = nn.Linear(3, 2)
    net(torch.randn(4, 3)).sum().backward()
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.step()

    taken = [Snapshot(dict(net.named_parameters()), {"opt": optimizer}) for _ in range(2)]

    assert taken[0].difference(taken[1]) is None


def test_a_snapshot_is_not_changed_by_what_comes_after_it():
    weight, holder = torch.zeros(2), owner(row=[1])
    first = Snapshot({"w": weight}, {"it": holder})

    weight.add_(1)
    holder.row.append(2)

    assert torch.equal(first.values["w"], torch.zeros(2))
    assert "it.row[1]" not in first.values


def _grow(holder, weight):
    holder.row.append(0)


CHANGES = {
    "w": lambda holder, weight: flipped(weight),
    "w.grad": lambda holder, weight: flipped(weight.grad),
    "w.requires_grad": lambda holder, weight: weight.requires_grad_(False),
    "w.grad is None": lambda holder, weight: setattr(weight, "grad", None),
    "it.number": lambda holder, weight: setattr(holder, "number", 2),
    "it.number, as a float": lambda holder, weight: setattr(holder, "number", 1.0),
    "it.number, as a truth value": lambda holder, weight: setattr(holder, "number", True),
    "it.table.a[0]": lambda holder, weight: holder.table["a"].__setitem__(0, 9),
    "it.table.mean": lambda holder, weight: flipped(holder.table["mean"]),
    "it.row[2]": _grow,
    "it.row[1]": lambda holder, weight: holder.row.pop(),
    "it.queue[0]": lambda holder, weight: holder.queue.rotate(1),
    "it.new": lambda holder, weight: setattr(holder, "new", 1),
    "it.text": lambda holder, weight: delattr(holder, "text"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_is_named_by_its_path(change):
    weight = nn.Parameter(torch.randn(3))
    weight.grad = torch.randn(3)
    holder = owner(
        number=1,
        text="a",
        row=[1, 2],
        queue=deque([1, 2]),
        table={"a": [1], "mean": torch.randn(2)},
    )

    def take():
        return Snapshot({"w": weight}, {"it": holder})

    before = take()
    CHANGES[change](holder, weight)
    after = take()

    path = change.split(", ")[0]
    assert before.difference(after) == path
    assert after.difference(before) == path


def test_the_first_of_several_differences_is_named():
    a, b, holder = torch.zeros(1), torch.zeros(1), owner(x=1, y=2)

    def take():
        return Snapshot({"a": a, "b": b}, {"it": holder})

    before = take()
    holder.y, holder.x = 5, 6
    assert before.difference(take()) == "it.x"

    b.add_(1)
    assert before.difference(take()) == "b"

    a.add_(1)
    assert before.difference(take()) == "a"


def test_equal_values_with_other_strides_are_a_difference():
    plain = torch.arange(6.0).reshape(2, 3)

    found = of_tensor(plain).difference(of_tensor(plain.t().contiguous().t()))

    assert found == "w.stride()"


@pytest.mark.parametrize("path", ["it.table", "it.table.a"])
def test_paths_that_are_not_compared_include_what_lies_below(path):
    holder = owner(table={"a": [torch.zeros(1)]}, tables=1)
    before = of_owner(holder)
    holder.table["a"][0].add_(1)

    after = of_owner(holder)

    assert before.difference(after) == "it.table.a[0]"
    assert before.difference(after, besides={"it.table.a[0]"}) is None
    assert before.difference(after, besides={path}) is None


def test_a_path_that_begins_alike_is_compared():
    holder = owner(table=1, tables=1)
    before = of_owner(holder)
    holder.tables = 2

    assert before.difference(of_owner(holder), besides={"it.table"}) == "it.tables"


def test_a_gradient_that_is_not_compared_may_be_missing():
    weight = nn.Parameter(torch.zeros(2))
    before = of_tensor(weight)
    weight.grad = torch.ones(2)

    after = of_tensor(weight)

    assert before.difference(after) == "w.grad is None"
    assert before.difference(after, besides={"w.grad"}) is None


NAN = float("nan")


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), True),
        (torch.tensor([1.0, NAN]), torch.tensor([NAN, 1.0]), False),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), True),
        (torch.tensor([complex(1, NAN)]), torch.tensor([complex(1, NAN)]), True),
        (torch.tensor([1]), torch.tensor([2]), False),
        (torch.tensor([True]), torch.tensor([True]), True),
        (torch.empty(0), torch.empty(0), True),
        (torch.empty(0, 2), torch.empty(0), False),
    ],
)
def test_two_tensors_are_the_same_if_all_elements_are_equal_or_both_nan(a, b, equal):
    assert same(a, b) is equal


@pytest.mark.parametrize("number", [NAN, 0.0, 1, True, "a", None])
def test_numbers_are_compared_with_their_type(number):
    before, after = of_owner(owner(x=number)), of_owner(owner(x=number))

    assert before.difference(after) is None
    assert before.difference(of_owner(owner(x=(number,)))) == "it.x"

import pytest
import torch

from stepgraph.cli.demo.bitwise import compare, snapshot


def test_equal_tensors_are_counted():
    weights = {"a": torch.ones(2, 3), "b": torch.tensor(1.0)}

    found = compare(weights, {name: tensor.clone() for name, tensor in weights.items()})

    assert (found.tensors, found.elements, found.different) == (2, 7, ())


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([1.0, 0.0]).nextafter(torch.tensor(2.0)),
        torch.tensor([1.0, -0.0]),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        torch.tensor([[1.0, 0.0]]),
    ],
    ids=["next float", "sign of zero", "dtype", "shape"],
)
def test_a_difference_is_named(other):
    found = compare({"w": torch.tensor([1.0, 0.0])}, {"w": other})

    assert found.different == ("w",)


def test_the_same_nan_is_the_same():
    assert compare({"w": torch.tensor([torch.nan])}, {"w": torch.tensor([torch.nan])}) == compare(
        {"w": torch.zeros(1)}, {"w": torch.zeros(1)}
    )


def test_layout_in_memory_does_not_matter():
    tensor = torch.arange(6.0).view(2, 3)

    assert compare({"w": tensor}, {"w": tensor.t().contiguous().t()}).different == ()


def test_what_only_one_side_has_differs():
    one, other = {"a": torch.zeros(1)}, {"b": torch.zeros(1)}

    assert compare(one, other).different == ("a", "b")


def test_a_snapshot_holds_parameters_buffers_and_optimizer_state():
    model = torch.nn.BatchNorm1d(2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()

    names = set(snapshot(model, {"opt": optimizer}))

    assert {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"} < names
    assert {f"opt.state[{i}]['{key}']" for i in (0, 1) for key in ("step", "exp_avg")} < names

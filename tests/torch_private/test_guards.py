"""What a capture leaves to Dynamo's guards, and what it checks together."""

import copy
import dis

import pytest
import torch
from torch import nn

import stepgraph


def captured(step, *batch):
    """The capture of a step that replays."""
    compiled = stepgraph.compile(step, on_fallback="error")
    for _ in range(3):
        compiled(*batch)
    (variant,) = compiled._variants
    return variant.captured


def tensor_guards(found):
    """How many tensors Dynamo guards one by one."""
    return sum("TENSOR_MATCH" in row for row in str(found.guards.found).splitlines())


def deep(n, *, clears_first=True):
    """A step over a batch and 2n parameters."""
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(n)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        if clears_first:
            optimizer.zero_grad()
        loss = model(x).square().mean()
        if not clears_first:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("clears_first", [True, False])
def test_parameters_of_an_optimizer_have_no_guard_of_their_own(clears_first):
    shallow = captured(deep(1, clears_first=clears_first), torch.ones(2, 3))
    steep = captured(deep(6, clears_first=clears_first), torch.ones(2, 3))

    assert tensor_guards(shallow) == tensor_guards(steep) == 1  # the batch


def test_parameters_that_might_become_others_of_the_step_keep_their_guards():
    model = nn.Linear(3, 3)
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        optimizer.zero_grad()
        loss = (model(x) - teacher(x + 1)).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    assert tensor_guards(captured(step, torch.ones(2, 3))) == 5


def test_a_parameter_that_something_else_than_a_module_holds_keeps_its_guard():
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(weights, lr=0.1)

    def step(x):
        optimizer.zero_grad()
        loss = (weights[0] * weights[1] * x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    assert tensor_guards(captured(step, torch.ones(2, 3))) == 3


def test_the_program_alone_stores_gradients():
    found = captured(deep(2), torch.ones(2, 3))

    instructions = dis.get_instructions(found.around.bytecode)
    stored = [i.argval for i in instructions if i.opname == "STORE_ATTR"]

    assert stored == []

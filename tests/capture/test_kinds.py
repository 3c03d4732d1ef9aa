"""What a node is for follows from the code that was traced, not from names of files."""

import functools
import importlib.util
import sys

import pytest
import torch
from torch import nn

import stepgraph
from stepgraph.ir import Kind

SOURCE = """
from torch.nn import functional as F

def {name}(model, x, y):
    return F.mse_loss(model(x), y)
"""


@pytest.fixture
def imported(monkeypatch):
    """Write a file with a loss of this name, import it, and return the loss."""
    return functools.partial(_imported, monkeypatch)


def _imported(monkeypatch, folder, file, function):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    path.write_text(SOURCE.format(name=function))
    spec = importlib.util.spec_from_file_location(f"of_the_user_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return getattr(module, function)


@pytest.mark.parametrize(
    ("folder", "file", "function"),
    [
        (".", "clip_grad.py", "loss_of"),
        (".", "clip_grad.py", "_get_total_norm"),
        (".", "losses.py", "clip_grad_norm_"),
        (".", "optimizer.py", "zero_grad"),
        (".", "backward.py", "backward"),
        ("stepgraph/capture/objects", "optimizer.py", "zero_grad"),
    ],
)
def test_a_users_function_is_forward_whatever_it_and_its_file_are_called(
    imported, tmp_path, folder, file, function
):
    loss_of = imported(tmp_path / folder, file, function)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @stepgraph.compile(on_fallback="error")
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(3):
        step(torch.randn(8, 4), torch.randn(8, 1))

    (graph,) = step.graphs
    counted = graph.count()
    assert counted[Kind.FORWARD] == 1
    assert not {Kind.CLIP, Kind.GRAD_NORM} & set(counted)
    (forward,) = [node for node in graph.nodes if graph.kind(node) is Kind.FORWARD]
    assert forward.meta["stepgraph.at"] == f"{tmp_path / folder / file}:5"


def test_a_line_in_a_folder_called_torch_is_the_users(imported, tmp_path):
    loss_of = imported(tmp_path / "torch", "losses.py", "loss_of")
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @stepgraph.compile(on_fallback="error")
    def step(x, y):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()

    for _ in range(2):
        step(torch.randn(8, 4), torch.randn(8, 1))

    (graph,) = step.graphs
    (forward,) = [node for node in graph.nodes if graph.kind(node) is Kind.FORWARD]
    assert forward.meta["stepgraph.at"] == f"{tmp_path / 'torch' / 'losses.py'}:5"


def test_clipping_by_torch_is_told_apart_from_the_norm_it_needs():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @stepgraph.compile(on_fallback="error")
    def step(x):
        optimizer.zero_grad()
        model(x).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        optimizer.step()

    for _ in range(2):
        step(torch.randn(8, 4))

    kinds = [step.graphs[0].kind(node) for node in step.graphs[0].nodes]
    assert [k for k in kinds if k in (Kind.GRAD_NORM, Kind.CLIP, Kind.STEP)] == [
        Kind.GRAD_NORM,
        Kind.CLIP,
        Kind.STEP,
    ]

"""FuseTail: what it fuses, what it must not, and what the kernels make of it."""

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

import stepgraph
from stepgraph.ir import Kind, flatten, marker_name, partition
from stepgraph.ir import build as b
from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.updates.cpu import FusedUpdate
from stepgraph.passes import FuseTail, Pipeline
from support.harness import Program, assert_captured, draw, same_as_eager

ONLY = Pipeline((FuseTail(),))


def clipped(between=lambda *values: None):
    def step(w, v, gw, gv):
        with torch.no_grad(), b.part(Kind.GRAD_NORM):
            norm = torch.linalg.vector_norm(torch.stack([gw.norm(), gv.norm()]))
        with torch.no_grad(), b.part(Kind.CLIP):
            torch._foreach_mul_([gw, gv], 1 / (norm + 1))
        between(w, v, gw, gv)
        b.step([w], [gw], 0)
        b.step([v], [gv], 2)

    inputs = {"param:w": torch.ones(3), "param:v": torch.ones(2)}
    grads = {"grad:w": torch.ones(3), "grad:v": torch.ones(2)}
    return partition(b.transparent(b.flat_graph(step, inputs | grads, labels={0: "one", 2: "two"})))


def tail(graph):
    names = [marker_name(node) or node.name for node in flatten(graph).graph.nodes]
    return [name for name in names if name in ("step", "clipped_step", "_foreach_mul_")]


def test_the_picture():
    graph = clipped()
    assert tail(graph) == ["_foreach_mul_", "step", "step"]

    graph, (record,) = ONLY(graph)

    assert tail(graph) == ["clipped_step", "clipped_step"]
    assert record.did == ("clipping inside the update of one, two",)
    assert not ONLY(graph)[1][0].acted


def test_what_another_optimizer_needs_is_clipped_where_it_was():
    graph, _ = ONLY(clipped(lambda w, v, gw, gv: b.log(gv)))

    assert tail(graph) == ["_foreach_mul_", "clipped_step", "step"]


def test_a_gradient_that_is_changed_in_between_keeps_them_apart():
    def change(w, v, gw, gv):
        with torch.no_grad(), b.part(Kind.BACKWARD):
            gw.add_(1)
            gv.add_(1)

    assert not ONLY(clipped(change))[1][0].acted


def test_an_update_that_is_no_kernel_is_left_alone():
    graph = clipped()
    for node in graph.nodes:
        node.meta.pop("stepgraph.divisible", None)

    assert not ONLY(graph)[1][0].acted


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop"])
def test_without_kernels_it_is_the_same_bit_for_bit(name):
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        optimizer = getattr(optim, name)(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            return loss, norm

        def batch(index):
            return draw(3, 4, seed=index), draw(3, 2, seed=-index - 1)

        return Program(step, batch, watch=[net, optimizer])

    result = same_as_eager(make, passes=lambda default: default.then(FuseTail()))

    assert_captured(result)
    assert "clipping inside" in str(result.explain())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("factor", [0.25, 1.0])
def test_a_kernel_clips_and_updates(factor, dtype):
    worlds = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(7, 3, dtype=dtype)
        optimizer = optim.AdamW(net.parameters(), lr=0.1)
        update = FusedUpdate(optimizer)
        for call in range(4):
            net.weight.grad = draw(3, 7, seed=call).to(dtype)
            net.bias.grad = draw(3, seed=-call - 1).to(dtype)
            if fused and call:
                update.clipped(torch.tensor(factor, dtype=dtype))
            else:
                torch._foreach_mul_([net.weight.grad, net.bias.grad], factor)
                optimizer.step()
        worlds.append([*net.parameters(), net.weight.grad, optimizer.state[net.weight]["exp_avg"]])
        assert not fused or update.refusal is None

    assert all(map(is_close, *worlds))


@pytest.mark.slow
def test_the_inductor_backend_clips_inside_the_update():
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    optimizer = optim.AdamW(net.parameters(), lr=0.1)

    @stepgraph.compile(backend="inductor", on_fallback="error", clip_norm=0.1)
    def step(x):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    for index in range(4):
        step(draw(3, 4, seed=index))

    norm = torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-4)
    assert "clipping inside the update of AdamW" in str(step.explain())

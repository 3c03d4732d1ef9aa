"""precision="bf16-true": the model is in bfloat16, and so is what it is given."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from stepgraph.errors import ConfigurationError
from support.harness import draw, draw_labels


class World:
    def __init__(self, dtype=torch.bfloat16):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05)

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        return loss


def batch(index):
    return draw(6, 4, seed=index), draw_labels(6, below=3, seed=index)


def test_a_step_in_bfloat16_is_the_plain_step_on_a_cast_batch():
    plain, world = World(), World()
    compiled = stepgraph.compile(world.step, precision="bf16-true", on_fallback="error", verify=1)

    for index in range(6):
        x, y = batch(index)
        expected, found = plain.step(x.bfloat16(), y), compiled(x, y=y)
        assert found.dtype is torch.bfloat16
        assert torch.equal(found, expected)

    assert compiled.explain().captured
    assert all(map(torch.equal, world.net.parameters(), plain.net.parameters()))


def test_the_explanation_of_the_eager_backend_says_that_there_are_no_master_weights():
    world = World()
    compiled = stepgraph.compile(world.step, precision="bf16-true")
    for index in range(3):
        compiled(*batch(index))

    assert "no float32 master weights" in str(compiled.explain())


@pytest.mark.slow
def test_fused_updates_keep_float32_masters_for_all_variants_of_a_step():
    def train(dtype):
        world = World(dtype)
        world.optimizer.param_groups[0]["lr"] = 1e-3
        options = {"precision": "bf16-true"} if dtype is torch.bfloat16 else {}
        compiled = stepgraph.compile(
            world.step, backend="inductor", accumulate=2, on_fallback="error", **options
        )
        for index in range(160):
            compiled(*batch(index % 4 + (index // 80)))
        return world, compiled

    (exact, _), (world, compiled) = train(torch.float32), train(torch.bfloat16)
    begun = World()

    assert "AdamW" in str(compiled.explain())
    assert "; float32 master weights and state" in str(compiled.explain())
    sets = (w.net.parameters() for w in (exact, world, begun))
    for wanted, found, start in zip(*sets, strict=True):
        moved = (wanted - start.float()).norm()
        assert (wanted - found.float()).norm() < 0.2 * moved


def test_a_model_in_another_precision_is_refused_before_anything_runs():
    world = World(torch.float32)
    before = [p.clone() for p in world.net.parameters()]
    compiled = stepgraph.compile(world.step, precision="bf16-true")

    with pytest.raises(ConfigurationError, match="do not go together") as raised:
        compiled(*batch(0))

    assert "torch.float32" in raised.value.found
    assert all(map(torch.equal, world.net.parameters(), before))

"""The benchmark cases, as data: what is trained, on what, by which step.

A case knows nothing of who runs it. Its step is the code a user would write, and the peers (see
`peers`) hand it modules and optimizers: plain, compiled, or both inside a compiled step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.models import GPT, ManyParameters, convnet, mlp

Modules = Mapping[str, Any]
Optimizers = Mapping[str, Any]
Batch = tuple[Tensor, ...]
N_BATCHES = 8


@dataclass(frozen=True)
class Problem:
    """A case made: the real objects.

    Attributes:
        modules: The models by name.
        batches: Batches to go through again and again.
        make_optimizers: Called with options such as `fused=True`.
        step: The user's step: `(modules, optimizers, *batch) -> loss`.
        loss: `(model, *batch) -> loss`, for peers that own the loop. None where the step is more.
    """

    modules: dict[str, nn.Module]
    batches: Sequence[Batch]
    make_optimizers: Callable[..., dict[str, torch.optim.Optimizer]]
    step: Callable[..., Tensor]
    loss: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """A benchmark case.

    Attributes:
        name: What it is called on the command line.
        about: One line for the report.
        make: Makes the problem; the same one every time.
        accumulate: Calls that make one update; the measured time is that of a call.
        batch_size: Rows of a batch, for the sweep.
        sweep: The line of the sweep plot that it is a point of.
    """

    name: str
    about: str
    make: Callable[[], Problem]
    accumulate: int = 1
    batch_size: int | None = None
    sweep: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def supervised(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Callable[..., Tensor],
    *,
    clip: float | None = None,
    ema: bool = False,
    accumulate: int = 1,
) -> Problem:
    """Return the usual problem: one model, AdamW, perhaps clipping, averaging, accumulation."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999)) if ema else None
    calls = 0

    def step(modules: Modules, optimizers: Optimizers, *batch: Tensor) -> Tensor:
        net, optimizer = modules["model"], optimizers["model"]
        optimizer.zero_grad()
        value = loss(net, *batch)
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if average is not None:
            average.update_parameters(model)
        return value

    def accumulating(modules: Modules, optimizers: Optimizers, *batch: Tensor) -> Tensor:
        nonlocal calls
        value = loss(modules["model"], *batch)
        (value / accumulate).backward()
        calls += 1
        if calls == accumulate:
            calls = 0
            optimizers["model"].step()
            optimizers["model"].zero_grad()
        return value

    def make_optimizers(**options: Any) -> dict[str, torch.optim.Optimizer]:
        return {"model": torch.optim.AdamW(model.parameters(), lr=1e-3, **options)}

    plain = clip is None and not ema and accumulate == 1
    return Problem(
        {"model": model},
        batches,
        make_optimizers,
        step if accumulate == 1 else accumulating,
        loss if plain else None,
    )


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of a classifier."""
    return F.cross_entropy(model(x), y)


def predict_tokens(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of a language model."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _mlp(batch: int, **options: Any) -> Callable[[], Problem]:
    def make() -> Problem:
        torch.manual_seed(0)
        batches = [(torch.randn(batch, 32), torch.randint(10, (batch,))) for _ in range(N_BATCHES)]
        return supervised(mlp((32, 64, 64, 10)), batches, classify, **options)

    return make


def _gpt(*, dim: int, layers: int, batch: int, tokens: int) -> Callable[[], Problem]:
    def make() -> Problem:
        torch.manual_seed(0)
        model = GPT(vocabulary=256, dim=dim, layers=layers, heads=4, tokens=tokens)
        draw = [torch.randint(256, (batch, tokens + 1)) for _ in range(N_BATCHES)]
        return supervised(model, [(d[:, :-1], d[:, 1:]) for d in draw], predict_tokens)

    return make


def _convnet() -> Problem:
    torch.manual_seed(0)
    batches = [(torch.randn(32, 3, 32, 32), torch.randint(10, (32,))) for _ in range(N_BATCHES)]
    return supervised(convnet(), batches, classify)


def _many() -> Problem:
    torch.manual_seed(0)
    batches = [(torch.randn(4, 8),) for _ in range(N_BATCHES)]
    return supervised(ManyParameters(300), batches, lambda model, x: model(x).square().mean())


def _gan() -> Problem:
    """The seed's GAN: two optimizers in one step, the generated batch used in both."""
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {"g": mlp((16, 64, 64, 32)), "d": mlp((32, 64, 64, 1))}

    def make_optimizers(**options: Any) -> dict[str, torch.optim.Optimizer]:
        return {
            name: torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.5, 0.999), **options)
            for name, module in modules.items()
        }

    def step(modules: Modules, optimizers: Optimizers, real: Tensor, z: Tensor) -> Tensor:
        generator, discriminator = modules["g"], modules["d"]
        fake = generator(z)
        optimizers["d"].zero_grad()
        d_loss = F.softplus(-discriminator(real)).mean()
        d_loss = d_loss + F.softplus(discriminator(fake.detach())).mean()
        d_loss.backward()
        optimizers["d"].step()
        optimizers["g"].zero_grad()
        g_loss = F.softplus(-discriminator(fake)).mean()
        g_loss.backward()
        optimizers["g"].step()
        return d_loss.detach() + g_loss.detach()

    batches = [(torch.randn(64, 32), torch.randn(64, 16)) for _ in range(N_BATCHES)]
    return Problem(modules, batches, make_optimizers, step)


_SIZES = (16, 64, 256, 1024)

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        *(
            Case(f"mlp-{n}", f"3-layer MLP, width 64, batch {n}, AdamW", _mlp(n), 1, n, "mlp")
            for n in _SIZES
        ),
        Case("gan", "the seed's GAN: two MLPs, two Adams, batch 64", _gan, 1, 64),
        Case(
            "gpt-small",
            "GPT, 4 layers, dim 128, 8 x 64 tokens, AdamW",
            _gpt(dim=128, layers=4, batch=8, tokens=64),
        ),
        Case(
            "gpt-medium",
            "GPT, 6 layers, dim 384, 8 x 128 tokens, AdamW",
            _gpt(dim=384, layers=6, batch=8, tokens=128),
        ),
        Case("convnet", "3 convolutions with BatchNorm, 32 images, AdamW", _convnet),
        *(
            Case(
                f"accumulate-{n}",
                f"MLP, batch 64, an update every {n} calls",
                _mlp(64, accumulate=n),
                n,
            )
            for n in (4, 16)
        ),
        Case(
            "clip-ema",
            "MLP, batch 64, clipped norm, averaged weights",
            _mlp(64, clip=1.0, ema=True),
        ),
        Case("many-parameters", "300 parameters of 8 elements, AdamW", _many),
    )
}
"""All cases, by name. Accumulation over 1 call is `mlp-64`."""

QUICK = ("mlp-64", "gan", "many-parameters")
"""The cases of the quick mode."""

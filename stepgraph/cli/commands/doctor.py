"""`stepgraph doctor`: print versions and devices, and test whether capture works here."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import nn

from stepgraph import config
from stepgraph.capture import self_test
from stepgraph.compiler import Explanation, compile
from stepgraph.errors import StepgraphError

_BACKENDS = ("auto", "eager", "inductor")
_BACKEND_TEXT = {
    "eager": "PyTorch's operators one by one; bit-identical on a CPU",
    "inductor": "compiled regions with other rounding; each was compared with eager",
}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `doctor`."""
    parser = commands.add_parser(
        "doctor",
        help="print versions and devices, and test whether capture works here",
        description="Print versions, compilers and devices; capture a step whose graph is known; "
        "train a small model eagerly and compiled on every device and compare the weights.",
        epilog="exit codes: 0 steps are captured here; 1 a step is not captured or differs",
    )
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        action="append",
        help="try this backend; may be given several times (default: auto)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if a check failed.

    Raises:
        ConfigurationError: A `STEPGRAPH_*` variable has a wrong value.
    """
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for name, found in (*_software(), *_devices(), *_settings()):
        console.print(f"{name:<14} {found}")
    tested = self_test()
    verdict = "a step is captured as expected" if tested.passed else f"FAILED: {tested.reason}"
    console.print(f"{'self-test':<14} {verdict}\n")
    if not tested.passed:
        console.print("Every step runs eagerly here: capture does not work with this torch.")
        return 1
    backends = arguments.backend or ["auto"]
    trials = [_try(backend, device) for backend in backends for device in _device_types()]
    for trial in trials:
        console.print(str(trial))
    return 0 if all(trial.works for trial in trials) else 1


@dataclass(frozen=True)
class _Trial:
    """The result of a small training, eagerly and compiled."""

    backend: str
    device: str
    explanation: Explanation | None
    problem: str | None

    @property
    def works(self) -> bool:
        return self.problem is None

    def __str__(self) -> str:
        head = f'backend="{self.backend}" on {self.device}'
        if self.problem is not None:
            return f"{head}: {self.problem}"
        assert self.explanation is not None
        (variant,) = self.explanation.variants
        lines = [f"{head}: a step is captured whole and trains as in eager mode"]
        lines.append(f"  run by the {variant.backend} backend: {_BACKEND_TEXT[variant.backend]}")
        for optimizer in variant.optimizers:
            how = "fused" if optimizer.fused else f"not fused: {optimizer.why}"
            lines.append(f"  {optimizer.label}: {how}")
        return "\n".join(lines)


def _try(backend: str, device: str) -> _Trial:
    """Train a small model for four calls, eagerly and compiled, and compare the weights."""
    try:
        eager, _ = _train(device, None)
        compiled, explanation = _train(device, backend)
    except StepgraphError as error:
        return _Trial(backend, device, None, error.what)
    problem = None
    if explanation is None or not explanation.captured:
        reason = explanation.fallback_reason if explanation else None
        problem = f"NOT CAPTURED: {reason}"
    elif not _close(eager, compiled, exact=backend == "eager" and device == "cpu"):
        problem = "DIFFERS from eager: please report it"
    return _Trial(backend, device, explanation, problem)


def _train(device: str, backend: str | None) -> tuple[list[torch.Tensor], Explanation | None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)
        batch = torch.randn(4, 8).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    compiled = backend and compile(step, backend=backend, on_fallback="silent")
    for _ in range(4):
        (compiled or step)(batch)
    weights = [parameter.detach() for parameter in model.parameters()]
    return weights, compiled.explain() if compiled else None


def _close(expected: list[torch.Tensor], found: list[torch.Tensor], *, exact: bool) -> bool:
    pairs = zip(expected, found, strict=True)
    if exact:
        return all(torch.equal(a, b) for a, b in pairs)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def _software() -> Iterator[tuple[str, str]]:
    yield "stepgraph", _version("stepgraph") or "from source"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}{_tested_range()}"
    yield "networkx", _version("networkx") or "missing"
    yield "triton", _version("triton") or "not installed: no kernels, optimizers are not fused"
    kernels = importlib.util.find_spec("stepgraph_kernels") is not None
    yield "kernels", "installed" if kernels else "not installed"
    yield "C++ compiler", _cpp_compiler()


def _devices() -> Iterator[tuple[str, str]]:
    cores, threads = os.cpu_count(), torch.get_num_threads()
    yield "CPU", f"{cores} cores, {threads} torch threads"
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "no device is visible" if built else "this torch is a build for CPUs"
        yield "GPU", f"none: {why}"
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield (
            "GPU",
            (
                f"{found.name}, capability {found.major}.{found.minor}, "
                f"{found.total_memory / 2**30:.0f} GiB"
            ),
        )


def _settings() -> Iterator[tuple[str, str]]:
    limits = config.current()
    if limits.disable:
        yield "settings", "STEPGRAPH_DISABLE is set: every step runs eagerly"
    variants, failures = limits.max_variants, limits.max_capture_failures
    yield "limits", f"{variants} variants of a step, {failures} failed captures"


def _device_types() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tested_range() -> str:
    """Return the tested range of torch versions, or an empty string if not installed."""
    try:
        required = importlib.metadata.requires("stepgraph") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    ranges = [line.removeprefix("torch") for line in required if line.startswith("torch")]
    return f" (tested with {ranges[0]})" if ranges else ""


def _cpp_compiler() -> str:
    names = [os.environ.get("CXX"), "g++", "clang++"]
    for name in filter(None, names):
        path = shutil.which(name)
        if path is not None:
            return path
    return 'none: backend="inductor" cannot compile'

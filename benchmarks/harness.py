"""What every table of numbers begins with, and the line that fits one."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch


def header(command: str) -> str:
    """Return the machine, the versions and the command that made the numbers below it."""
    about = {
        "command": command,
        "commit": _commit(),
        "cpu": f"{_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)",
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return "\n".join(f"{key:<9}{value}" for key, value in about.items())


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Return a and b of the line a + b * x through the points, by least squares."""
    slope, intercept = statistics.linear_regression(xs, ys)
    return intercept, slope


def _cpu() -> str:
    table = Path("/proc/cpuinfo")
    text = table.read_text() if table.exists() else ""
    names = [row.split(":", 1)[1].strip() for row in text.splitlines() if "model name" in row]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty"]
    answer = subprocess.run(
        asked, capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return answer.stdout.strip() or "unknown"

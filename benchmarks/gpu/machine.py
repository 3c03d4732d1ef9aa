"""What the numbers were measured on."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).parents[2]


def header(device: torch.device) -> dict[str, object]:
    """Describe machine, versions and commit."""
    found: dict[str, object] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "python": platform.python_version(),
        "driver": _driver(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": "make gpu",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["multiprocessors"] = properties.multi_processor_count
    return found


def device_name(device: torch.device) -> str:
    """The product name, or the interpreter."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "triton interpreter"


def result_path(folder: Path, machine: dict[str, object]) -> Path:
    """`<folder>/<gpu>/<date>-<commit>.json`."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower()).strip("-")
    return folder / slug / f"{str(machine['date'])[:10]}-{machine['commit']}.json"


def commit() -> str:
    """Short hash of the checkout, with a mark if files were changed; `unknown` outside git."""
    short = _output("git", "rev-parse", "--short", "HEAD")
    if not short:
        return "unknown"
    return f"{short}-changed" if _output("git", "status", "--porcelain", "kernels") else short


def _driver() -> str:
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return (_output(*query) or "unknown").splitlines()[0]


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

"""The results as text, JSON and a picture."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES
from benchmarks.measure import Timing
from benchmarks.peers import BASE, PEERS


@dataclass(frozen=True)
class Result:
    """One case: the timings by peer, and who did not run it, why."""

    case: str
    timings: Mapping[str, Timing]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{self.case}: {CASES[self.case].about}"]
        titles = ("median", "20-80 %", "ratio", "(range)", "first", "peak")
        lines.append("  {:<20}{:>11} {:>19}{:>8} {:>13}{:>9}{:>10}  losses".format("", *titles))
        lines += [f"  {name:<20}{_row(timing)}" for name, timing in self.timings.items()]
        lines += [f"  {name:<20}  skipped: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)


def _row(timing: Timing) -> str:
    spread = f"{timing.low_us:,.0f}-{timing.high_us:,.0f}"
    low, high = timing.ratio_range
    peak = "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:,.2f} MiB"
    losses = " ".join(f"{loss:.5f}" for loss in timing.losses)
    return (
        f"{timing.median_us:>8,.0f} us {spread:>19}{timing.ratio:>7.2f}x "
        f"{f'({low:.2f}-{high:.2f})':>13}{timing.first_calls_s:>7.1f} s{peak:>10}  {losses}"
    )


def machine(command: str) -> dict[str, Any]:
    """Return what must stand beside every number."""
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "base": BASE,
    }


def header(about: Mapping[str, Any]) -> str:
    """Return the machine as text."""
    return "\n".join(f"{key:<13}{value}" for key, value in about.items())


def write_json(path: Path, about: Mapping[str, Any], results: list[Result]) -> None:
    """Write everything that was measured."""
    document = {"machine": dict(about), "results": [dataclasses.asdict(r) for r in results]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def markdown(results: list[Result]) -> str:
    """Return a table of ratios: a row for each case, a column for each peer."""
    peers = list(dict.fromkeys(name for r in results for name in r.timings if name != BASE))
    rows = [f"| case | {BASE} | " + " | ".join(peers) + " |", "|---" * (len(peers) + 2) + "|"]
    for result in results:
        cells = [f"{result.timings[BASE].median_us:,.0f} us"]
        for name in peers:
            timing = result.timings.get(name)
            cells.append("-" if timing is None else f"{timing.ratio:.2f}x")
        rows.append(f"| {result.case} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def write_picture(path: Path, about: Mapping[str, Any], results: list[Result]) -> str | None:
    """Draw ratios by case, and the sweep over batch sizes; return why not if there is no plot."""
    try:
        import matplotlib  # noqa: PLC0415  (optional)

        matplotlib.use("Agg")
        from matplotlib import pyplot  # noqa: PLC0415
    except ImportError:
        return "matplotlib is not installed"
    swept = [r for r in results if CASES[r.case].sweep]
    n_plots = 2 if len(swept) > 1 else 1
    figure, axes = pyplot.subplots(1, n_plots, figsize=(7 * n_plots, 4.5), squeeze=False)
    _bars(axes[0][0], results)
    if n_plots == 2:
        _sweep(axes[0][1], swept)
    figure.suptitle(
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return None


def _bars(axis: Any, results: list[Result]) -> None:
    peers = list(dict.fromkeys(name for r in results for name in r.timings if name != BASE))
    width = 0.8 / max(1, len(peers))
    for i, name in enumerate(peers):
        shown = [(j, r.timings[name]) for j, r in enumerate(results) if name in r.timings]
        places = [j + (i - len(peers) / 2 + 0.5) * width for j, _ in shown]
        ratios = [timing.ratio for _, timing in shown]
        below = [timing.ratio - timing.ratio_range[0] for _, timing in shown]
        above = [timing.ratio_range[1] - timing.ratio for _, timing in shown]
        bars = {"yerr": (below, above), "error_kw": {"linewidth": 0.7}}
        axis.bar(places, ratios, width, label=name, color=_colour(name), **bars)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(results)), [r.case for r in results], rotation=30, ha="right")
    axis.set_ylabel(f"times as fast as {BASE}")
    axis.legend(fontsize=7)


def _sweep(axis: Any, results: list[Result]) -> None:
    for name in dict.fromkeys(name for r in results for name in r.timings):
        points = [(CASES[r.case].batch_size, r.timings[name]) for r in results if name in r.timings]
        sizes = [size for size, _ in points]
        medians = [t.median_us for _, t in points]
        low, high = [t.low_us for _, t in points], [t.high_us for _, t in points]
        axis.plot(sizes, medians, marker="o", label=name, color=_colour(name))
        axis.fill_between(sizes, low, high, alpha=0.15, color=_colour(name))
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="us a call")
    axis.set_title("MLP: where compiling stops paying", fontsize=9)
    axis.legend(fontsize=7)


def _colour(peer: str) -> str:
    """Return the colour of a peer, the same in every picture."""
    return f"C{list(PEERS).index(peer)}"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())

"""`python -m benchmarks.run`: cases against peers, side by side.

python -m benchmarks.run --quick          within 3 minutes on 2 cores
python -m benchmarks.run                  everything
python -m benchmarks.run --case gan --peer stepgraph-inductor --peer jax
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import cases, peers, report
from benchmarks.measure import measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; print, and write JSON and a picture."""
    given = _parser().parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    names = given.case or list(cases.QUICK if given.quick else cases.CASES)
    asked = given.peer or list(_quick_peers() if given.quick else peers.PEERS)
    about = report.machine("python -m benchmarks.run " + " ".join(arguments or sys.argv[1:]))
    print(report.header(about), end="\n\n", flush=True)
    results = []
    started = time.perf_counter()
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            timings, skipped = measure(
                cases.CASES[name],
                asked,
                seconds=given.seconds or (4.0 if given.quick else 20.0),
                rounds=given.rounds or (5 if given.quick else 11),
            )
        results.append(report.Result(name, timings, skipped))
        print(results[-1], end="\n\n", flush=True)
        if given.explain:
            _print_explanations(results[-1])
    print(report.markdown(results))
    print(f"\nmeasured in {time.perf_counter() - started:.0f} s")
    _write(given.out, about, results)
    return 0


def _quick_peers() -> tuple[str, ...]:
    return (*peers.QUICK, "lightning", "jax")


def _print_explanations(result: report.Result) -> None:
    for timing in result.timings.values():
        if timing.said:
            print(timing.said, end="\n\n")


def _write(folder: Path, about: dict[str, object], results: list[report.Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(folder / "results.json", about, results)
    print(f"wrote {folder / 'results.json'}")
    why = report.write_picture(folder / "results.png", about, results)
    print(f"no picture: {why}" if why else f"wrote {folder / 'results.png'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a few cases and peers")
    parser.add_argument("--case", action="append", choices=sorted(cases.CASES))
    parser.add_argument("--peer", action="append", choices=sorted(peers.PEERS))
    parser.add_argument("--seconds", type=float, help="of timed calls for each case")
    parser.add_argument("--rounds", type=int, help="turns that every peer gets")
    parser.add_argument("--threads", type=int, help="of torch; fewer than cores on a busy machine")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--explain", action="store_true", help="print what stepgraph did")
    return parser


if __name__ == "__main__":
    sys.exit(main())

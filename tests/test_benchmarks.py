"""The benchmark suite: what it runs, what it says, what it leaves out."""

import itertools
import json
import sys

import pytest
import torch
from torch import nn

from benchmarks import bench_trainer, cases, measure, peers, report, run


@pytest.fixture
def tiny(monkeypatch):
    """A case that takes no time."""

    def make():
        torch.manual_seed(0)
        batches = [(torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(2)]
        return cases.supervised(nn.Linear(3, 2), batches, cases.classify)

    case = cases.Case("tiny", "a linear model", make)
    monkeypatch.setattr(cases, "CASES", {"tiny": case})
    monkeypatch.setattr(report, "CASES", {"tiny": case})
    return case


def test_all_peers_do_the_same_work(tiny):
    timings, skipped = measure.measure(
        tiny, ["eager-foreach", "stepgraph-eager"], seconds=0.01, rounds=2
    )

    assert skipped == {}
    assert list(timings) == [peers.BASE, "eager-foreach", "stepgraph-eager"]
    losses = [timing.losses for timing in timings.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == losses[2]
    assert timings[peers.BASE].ratio == 1.0


def test_the_base_is_as_fast_as_itself_and_others_are_compared_round_by_round():
    def runner(seconds):
        taken = itertools.cycle(seconds)
        return peers.Runner(lambda n: ([next(taken) for _ in range(n)], [0.0] * n))

    base = measure._Entrant(runner([1.0]), 0.0, (), [[2.0], [4.0], [6.0]])
    other = measure._Entrant(runner([1.0]), 0.0, (), [[1.0], [1.0], [1.0]])

    timing = measure._timing(other, base)

    assert timing.ratio == 4.0
    assert timing.ratio_range == (2.0, 6.0)


def test_a_window_of_calls_counts_as_their_mean():
    assert measure._window_means([1.0, 3.0, 1.0, 5.0], 2) == [2.0, 3.0]
    assert measure._window_means([1.0, 3.0], 1) == [1.0, 3.0]


def test_a_peer_that_is_not_there_is_skipped_with_a_reason(tiny, monkeypatch):
    def missing(problem, case):
        return peers.of_library(problem, case, module="nowhere", needs="no_such_library")

    monkeypatch.setitem(peers.PEERS, "missing", missing)

    timings, skipped = measure.measure(tiny, ["missing"], seconds=0.01, rounds=1)

    assert list(timings) == [peers.BASE]
    assert skipped == {"missing": "no_such_library is not installed"}


def test_memory_of_a_call_is_what_it_holds_at_most():
    def allocate(n):
        kept = torch.zeros(1000)
        torch.zeros(500)
        return [kept.sum().item()], [0.0]

    assert 5500 <= (measure.peak_bytes(peers.Runner(allocate)) or 0) <= 7000


def test_results_are_written_with_the_machine_beside_them(tiny, tmp_path, capsys):
    arguments = ["--case", "tiny", "--peer", "eager-foreach", "--seconds", "0.01", "--rounds", "2"]

    assert run.main([*arguments, "--out", str(tmp_path)]) == 0

    written = json.loads((tmp_path / "results.json").read_text())
    assert written["machine"]["torch"] == torch.__version__
    assert "--case tiny" in written["machine"]["command"]
    (result,) = written["results"]
    assert set(result["timings"]) == {peers.BASE, "eager-foreach"}
    assert "| tiny |" in capsys.readouterr().out


def test_every_case_is_made_the_same_way_twice():
    for name, case in cases.CASES.items():
        if name == "gpt-medium":
            continue
        first, second = case.make(), case.make()
        pairs = zip(first.batches, second.batches, strict=True)
        assert all(torch.equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True)), name
        assert first.modules.keys() == second.modules.keys()


def test_a_trainer_takes_turns_with_its_loop(monkeypatch):
    monkeypatch.setattr(bench_trainer, "BLOCK", 3)
    names = (bench_trainer.EAGER, "Trainer, compile=False")

    timed, skipped = bench_trainer.measure({n: bench_trainer.ENTRANTS[n] for n in names}, 2)

    assert skipped == {}
    sizes = {name: [len(block) for block in blocks] for name, blocks in timed.items()}
    assert list(sizes) == list(names)
    assert all(blocks == [3, 3] for blocks in sizes.values())


def test_a_trainer_that_is_not_installed_is_named_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setattr(bench_trainer, "BLOCK", 1)
    name = "Lightning, manual"

    found = bench_trainer.measure({name: bench_trainer.ENTRANTS[name]}, 1)

    assert found == ({}, {name: "lightning is not installed"})
    assert f"{name:<32}not measured: lightning is not installed" in bench_trainer.table(*found)


def test_what_a_trainer_adds_is_compared_block_by_block():
    loop = [[1.0] * 4, [9.0] * 4, [3.0] * 4]
    trainer = [[3.0] * 4, [10.0] * 4, [7.0] * 4]
    timed = {bench_trainer.EAGER: loop, "Trainer, compile=False": trainer}

    row = bench_trainer.table(timed, {}).splitlines()[-1]

    numbers = row.removeprefix("Trainer, compile=False").split()
    assert numbers == ["7.0", "us", "2.0", "us", "2.0", "us", "eager", "loop"]

import torch

from stepgraph.capture.self_test import SelfTest
from stepgraph.cli import main
from stepgraph.cli.commands import doctor


def test_the_doctor_names_versions_and_tries_a_step(capsys):
    code = main(["doctor"])

    printed = capsys.readouterr().out
    assert code == 0, printed
    assert torch.__version__ in printed
    assert 'backend="auto" on cpu: a step is captured whole and trains as in eager mode' in printed
    assert "AdamW(optimizer)" in printed


def test_a_torch_that_behaves_otherwise_is_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "self_test", lambda: SelfTest(False, "no graph at all"))

    code = main(["doctor"])

    printed = capsys.readouterr().out
    assert code == 1
    assert "FAILED: no graph at all" in printed
    assert "Every step runs eagerly" in printed


def test_a_library_that_is_switched_off_is_exit_code_1(capsys, monkeypatch):
    monkeypatch.setenv("STEPGRAPH_DISABLE", "1")

    code = main(["doctor"])

    printed = capsys.readouterr().out
    assert code == 1
    assert "STEPGRAPH_DISABLE is set: every step runs eagerly" in printed
    assert "NOT CAPTURED" in printed


def test_a_backend_that_trains_otherwise_is_noticed(capsys, monkeypatch):
    train = doctor._train

    def sabotage(device, backend):
        weights, explanation = train(device, backend)
        return [weight + (backend is not None) for weight in weights], explanation

    monkeypatch.setattr(doctor, "_train", sabotage)

    assert main(["doctor"]) == 1
    assert "DIFFERS from eager" in capsys.readouterr().out


def test_a_setting_without_a_meaning_is_a_sentence(capsys, monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "many")

    assert main(["doctor"]) == 2
    assert "STEPGRAPH_MAX_VARIANTS" in capsys.readouterr().err

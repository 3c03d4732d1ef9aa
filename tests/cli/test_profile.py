import json

from stepgraph.cli import main

SCRIPT = """\
import torch

model = torch.nn.Linear(2, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.1)


def step(x):
    opt.zero_grad()
    loss = model(x).square().mean()
    BRANCH
    loss.backward()
    opt.step()


for _ in range(100):
    step(torch.ones(3, 2))
"""


def test_a_step_of_a_script_is_measured_node_by_node(tmp_path, capsys):
    script, trace, out = (tmp_path / name for name in ("train.py", "trace.json", "profile.json"))
    script.write_text(SCRIPT.replace("BRANCH", ""))
    options = ["--calls", "4", "--steps", "2", "--trace", str(trace), "--json", str(out)]

    code = main(["profile", f"{script}:step", *options])

    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "4 calls observed" in printed
    assert "step: compiled runs at" in printed
    assert "backward_0" in printed
    assert json.loads(trace.read_text())["traceEvents"]
    nodes = json.loads(out.read_text())["nodes"]
    assert [node["kind"] for node in nodes][-1] == "step"


def test_a_step_that_is_not_captured_is_a_sentence(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("BRANCH", "loss = loss * 2 if loss > 0 else loss"))

    code = main(["profile", f"{script}:step", "--calls", "4"])

    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("stepgraph profile: step has nothing to profile\n")


def test_a_report_of_a_profile_is_written_where_it_is_asked_for(tmp_path):
    script, out = tmp_path / "train.py", tmp_path / "report.html"
    script.write_text(SCRIPT.replace("BRANCH", ""))

    code = main(["profile", f"{script}:step", "--calls", "3", "--steps", "1", "--html", str(out)])

    assert code == 0
    assert "Where the time goes" in out.read_text()

"""A printed step graph can be followed by a person who knows PyTorch."""

import torch

from stepgraph.ir import Kind, partition
from stepgraph.ir import build as b


def gan_step(x, d_w, g_w):
    b.OPS.toggle.default(g_w.detach(), False)
    with b.part(Kind.FORWARD, 0):
        error_d = (x @ g_w.detach() @ d_w).sum()
    with b.part(Kind.BACKWARD, 0):
        (gradient,) = torch.autograd.grad(error_d, [d_w])
    b.clear([d_w], 0)
    b.step([d_w], [b.store(d_w, gradient)], 0)
    with b.part(Kind.FORWARD, 1):
        error_g = (torch.nn.functional.dropout(x @ g_w) @ d_w).mean()
    with b.part(Kind.BACKWARD, 1):
        (gradient,) = torch.autograd.grad(error_g, [g_w])
    b.step([g_w], [b.store(g_w, gradient)], 1)
    b.log(error_g, 2)
    b.OPS.lr_step.default(None, 3)


def printed():
    values = {
        "batch:x": torch.ones(2, 3),
        "param:D.weight": torch.randn(3, 3, requires_grad=True),
        "param:G.weight": torch.randn(3, 3, requires_grad=True),
    }
    labels = {0: "Adam(d_opt)", 1: "Adam(g_opt)", 2: "losses", 3: "StepLR(schedule)"}
    flat = b.flat_graph(gan_step, values, labels=labels)
    b.nodes_of(flat, "step")[0].meta["stepgraph.at"] = "some/where/train.py:12"
    return partition(flat)


def test_a_gan_step_reads_like_training():
    lines = [" ".join(line.split()) for line in str(printed()).splitlines()]

    assert lines == [
        "step graph: 14 nodes, 23 ATen ops",
        "inputs: param 2 (72 B), batch 1 (24 B)",
        "0 toggle requires_grad of G.weight = False",
        "1 forward -> sum_1 [4 ops] reads D.weight, G.weight, x",
        "2 backward d sum_1 / d (D.weight) [4 ops]",
        "3 zero_grad Adam(d_opt): 1 grad = None",
        "4 accumulate D.weight.grad = ...",
        "6 step Adam(d_opt) [opaque]: updates 1 param train.py:12",
        "7 forward -> mean [7 ops] reads D.weight, G.weight, x, rng writes rng",
        "8 backward d mean / d (G.weight) [8 ops] reads D.weight, x",
        "9 accumulate G.weight.grad = ...",
        "11 step Adam(g_opt) [opaque]: updates 1 param",
        "12 log mean to losses",
        "13 lr_step StepLR(schedule)",
    ]


def test_dot_has_a_box_for_each_typed_node_and_styles_the_reasons():
    step = printed()

    dot = step.to_dot()

    typed = [n for n in step.nodes if step.kind(n)]
    assert dot.count("fillcolor=") == len(typed)
    assert '"step" -> "forward_1"' in dot
    assert "style=dashed" in dot
    assert dot.startswith("digraph step {")
    assert dot.endswith("}")


def test_every_marker_has_a_sentence():
    def everything(x, w, v):
        b.OPS.unscale.default([w.detach()], 0, 1)
        b.OPS.scaled_step.default([w.detach()], [v.detach()], 0, 1)
        b.OPS.scale_update.default(x, 0)
        b.OPS.ema.default([v.detach()], [w.detach()], [], 2)
        b.set_lr(b.lr(1), 1)
        b.OPS.lr_step.default(x, 3)
        b.OPS.set_grad.default(w.detach(), None)
        b.add(v.detach(), x)

    names = {0: "GradScaler(scaler)", 1: "SGD(opt)", 2: "AveragedModel(ema)", 3: "Plateau(s)"}
    values = {"batch:x": torch.ones(2), "param:w": torch.ones(2), "grad:w": torch.ones(2)}
    text = str(partition(b.flat_graph(everything, values, labels=names)))

    for words in [
        "GradScaler(scaler): 1 grad / scale",
        "updates 1 param unless a gradient is inf",
        "grows or halves the scale",
        "AveragedModel(ema): averages 1 param",
        "reads lr of SGD(opt)",
        "lr of SGD(opt) = hyper",
        "Plateau(s) watching arg0_1",
        "w.grad = None",
        "w.grad += ...",
    ]:
        assert words in text

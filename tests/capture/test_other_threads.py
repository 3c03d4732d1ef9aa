"""What a call does to torch's functions, only its own thread sees."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import utils

import stepgraph
from stepgraph.torch_private.thread_patch import ThreadPatch


def in_another_thread(work):
    """Run `work` in a thread and return its result."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def gradient_of_twice():
    weight = torch.ones(1, requires_grad=True)
    (weight * 2).sum().backward()
    return weight.grad.item()


def clipped_norm():
    weight = torch.ones(4, requires_grad=True)
    weight.grad = torch.full((4,), 10.0)
    utils.clip_grad_norm_([weight], 1.0)
    return weight.grad.norm().item()


def largest_clipped_value():
    weight = torch.ones(4, requires_grad=True)
    weight.grad = torch.full((4,), 10.0)
    utils.clip_grad_value_([weight], 1.0)
    return weight.grad.max().item()


WORK = {
    "a gradient": (gradient_of_twice, 2.0),
    "clipping to a norm": (clipped_norm, 1.0),
    "clipping to a value": (largest_clipped_value, 1.0),
}
OPTIONS = {"accumulate": {"accumulate": 4}, "microbatches": {"microbatches": 2}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("work", "expected"), WORK.values(), ids=WORK)
def test_an_eager_call_with_options_leaves_other_threads_alone(work, expected, options):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []

    @stepgraph.compile(on_fallback="silent", **options)
    def step(x):
        optimizer.zero_grad()
        loss = model(x).mean()
        if not torch.compiler.is_compiling():
            seen.append(in_another_thread(work))
        loss.backward()
        optimizer.step()
        return loss

    step(torch.randn(4, 3))

    assert seen
    assert seen == pytest.approx([expected] * len(seen))


def test_a_patch_is_gone_when_the_last_thread_has_left_in_whatever_order():
    class Owner:
        answer = staticmethod(lambda: "original")

    patch, inside, leave = ThreadPatch(Owner, "answer"), threading.Event(), threading.Event()
    original = Owner.answer

    def other():
        with patch.replaced_by(lambda: "other"):
            inside.set()
            leave.wait()
            return Owner.answer()

    found = []
    thread = threading.Thread(target=lambda: found.append(other()))
    with patch.replaced_by(lambda: "mine"):
        thread.start()
        inside.wait()
        with patch.replaced_by(lambda: "inner"):
            nested = Owner.answer()
        mine = Owner.answer()
    unpatched = Owner.answer()
    leave.set()
    thread.join()

    assert (nested, mine, unpatched, found) == ("inner", "mine", "original", ["other"])
    assert Owner.answer is original


def test_a_patch_that_somebody_wrapped_meanwhile_is_left_to_call_the_original():
    class Owner:
        answer = staticmethod(lambda: "original")

    patch = ThreadPatch(Owner, "answer")
    with patch.replaced_by(lambda: "mine"):
        dispatcher = Owner.answer
        Owner.answer = staticmethod(lambda: f"wrapped {dispatcher()}")

    assert Owner.answer() == "wrapped original"

"""Time of the passes on a graph of 20,000 operators: `python -m benchmarks.bench_pipeline`.

The step is a deep perceptron as a capture would give it: forward, backward, a gradient for each
weight, one update, gradients cleared at the end. Nothing of it runs; the tensors are fake.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from benchmarks.harness import header
from stepgraph.effects import OPS
from stepgraph.ir import Kind, Role, Slot, StepGraph, partition
from stepgraph.passes import DEFAULT, WITHOUT_GRADIENTS, EarlyUpdate, OrderForMemory, Pipeline

ATEN = torch.ops.aten
PER_LAYER = 10
"""Operators and markers of one layer."""

EAGER_TO_MOVE = Pipeline((EarlyUpdate(2**20), OrderForMemory(least_bytes=1)))
"""Passes that find much to do, on tensors of these sizes."""


class _Builder:
    """Builds the flat graph of a step of a perceptron of so many layers."""

    def __init__(self, layers: int, width: int) -> None:
        self.graph = Graph()
        self.kind, self.phase = Kind.FORWARD, 0
        self.x = self.input(Slot(Role.BATCH, "x"), torch.empty(32, width))
        weight = torch.empty(width, width)
        self.weights = [self.input(Slot(Role.PARAM, f"w{i}"), weight) for i in range(layers)]

    def input(self, slot: Slot, value: Tensor) -> Node:
        node = self.graph.placeholder(slot.name)
        node.meta.update({"val": value.clone(), "stepgraph.slot": slot})
        return node

    def add(self, target: object, *args: object, value: Tensor | None) -> Node:
        node = self.graph.call_function(target, args)  # type: ignore[arg-type]
        kind = {"stepgraph.kind": self.kind, "stepgraph.phase": self.phase}
        node.meta.update({"val": value, **kind})
        return node

    def build(self) -> GraphModule:
        hidden, saved, x = self.x.meta["val"], [], self.x
        square = self.weights[0].meta["val"]
        for weight in self.weights:
            product = self.add(ATEN.mm.default, x, weight, value=hidden.clone())
            saved.append((x, weight))
            x = self.add(ATEN.relu.default, product, value=hidden.clone())
        loss = self.add(ATEN.sum.default, x, value=hidden.sum())
        self.kind = Kind.BACKWARD
        grad = self.add(ATEN.expand.default, loss, list(hidden.shape), value=hidden.clone())
        stored = []
        for source, weight in reversed(saved):
            grad = self.add(ATEN.threshold_backward.default, grad, x, 0, value=hidden.clone())
            left = self.add(ATEN.t.default, source, value=hidden.t())
            product = self.add(ATEN.mm.default, left, grad, value=square.clone())
            right = self.add(ATEN.t.default, weight, value=square.t())
            grad, x = self.add(ATEN.mm.default, grad, right, value=hidden.clone()), source
            stored.append((weight, product))
        grads = [self.store(weight, product) for weight, product in reversed(stored)]
        step = self.add(OPS.step.default, self.weights, grads, 0, value=None)
        step.meta.update({"stepgraph.opaque": False, "stepgraph.divisible": True})
        self.add(OPS.zero_grad.default, self.weights, 0, value=None)
        self.graph.output((loss,))
        return GraphModule({}, self.graph)

    def store(self, weight: Node, value: Node) -> Node:
        grad = self.add(OPS.first_grad.default, weight, value, value=weight.meta["val"].clone())
        self.add(OPS.set_grad.default, weight, grad, value=None)
        return grad


def deep_step(operators: int, width: int = 256) -> StepGraph:
    """Return the step graph of a perceptron with about so many operators."""
    with FakeTensorMode():
        return partition(_Builder(operators // PER_LAYER, width).build())


def measure(pipeline: Pipeline, step: StepGraph) -> tuple[float, list[str]]:
    """Return how long a pipeline takes, in seconds, and what its passes say."""
    gc.collect()
    start = time.perf_counter()
    _, records = pipeline(step)
    elapsed = time.perf_counter() - start
    rows = [f"  {r.ms:7.0f} ms  {r.name}: {'; '.join(r.did) or 'nothing to do'}" for r in records]
    return elapsed, rows


def main(arguments: list[str] | None = None) -> int:
    """Print how long the pipelines take."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_pipeline")
    parser.add_argument("--operators", type=int, default=20_000)
    asked = parser.parse_args(arguments)
    print(header(f"python -m benchmarks.bench_pipeline --operators {asked.operators}"))
    pipelines = {
        "default": DEFAULT,
        "keep_grads=False": WITHOUT_GRADIENTS,
        "everything moves": EAGER_TO_MOVE,
    }
    for name, pipeline in pipelines.items():
        step = deep_step(asked.operators)
        elapsed, rows = measure(pipeline, step)
        print(f"\n{name}: {elapsed:.2f} s in all, verification and records included")
        print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

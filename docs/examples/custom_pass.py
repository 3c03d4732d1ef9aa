"""A pass of one's own merges what a step computes twice, here in a policy gradient with entropy."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn import functional as F

import stepgraph
from stepgraph.ir import (
    StepGraph,
    draws_random,
    flatten,
    marker_name,
    partition,
    storages_of,
    writes_of,
)
from stepgraph.passes import Pass


@dataclass(frozen=True)
class MergeEqualOperators(Pass):
    """Compute once what is computed twice from the same values.

    Before::                          After::

        a = log_softmax(logits)           a = log_softmax(logits)
        b = log_softmax(logits)           loss = f(a, a)
        loss = f(a, b)

    Legal for an operator that writes nothing and draws no random numbers, if nothing is written
    between the two, and if nobody gets hold of the result: two gradients, or two returned tensors,
    must not become one.

    Preserves: every result, bit for bit.
    Cost: O(nodes), for a bounded number of views of a value.
    """

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the step with every value computed once."""
        flat = flatten(step)
        shared = _shared_storages(flat.graph)
        known: dict[Hashable, Node] = {}
        for node in flat.graph.nodes:
            if _is_effect(node):
                known.clear()
            elif node.op == "call_function" and not storages_of(node) & shared:
                first = known.setdefault(_key(node), node)
                if first is not node:
                    node.replace_all_uses_with(first)
                    flat.graph.erase_node(node)
        return partition(flat)


def _is_effect(node: Node) -> bool:
    return marker_name(node) is not None or bool(writes_of(node)) or draws_random(node)


def _shared_storages(graph: Graph) -> set[Node]:
    """Return the memories that an effect may write or keep, or that the step returns."""
    ends = (node for node in graph.nodes if node.op == "output" or _is_effect(node))
    return {root for end in ends for value in end.all_input_nodes for root in storages_of(value)}


def _key(node: Node) -> Hashable:
    """Return what two nodes have in common that compute the same, in the same kind of node."""
    arguments = repr((node.args, sorted(node.kwargs.items())))  # nodes print their unique names
    return node.target, arguments, node.meta.get("stepgraph.kind")


class Training:
    """A policy that guesses digits and only learns whether it was right."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.policy = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=3e-3)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Guess, get a reward where it was right, reinforce; return the mean reward."""
        self.optimizer.zero_grad()
        logits = self.policy(images)
        guesses = torch.multinomial(F.softmax(logits, dim=1), 1)
        reward = (guesses == labels[:, None]).float()
        chosen = F.log_softmax(logits, dim=1).gather(1, guesses)
        entropy = -(F.softmax(logits, dim=1) * F.log_softmax(logits, dim=1)).sum(1)
        loss = -((reward - reward.mean()) * chosen).mean() - 0.01 * entropy.mean()
        loss.backward()
        self.optimizer.step()
        return reward.mean()


def train(training: Training, steps: int, *, compiled: bool = True) -> tuple[object, list[Tensor]]:
    """Train on digits; return the step and the rewards."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    step = training.step
    if compiled:
        step = stepgraph.compile(step, passes=lambda default: default.then(MergeEqualOperators()))
    batches = [torch.randint(len(images), (64,)) for _ in range(steps)]
    return step, [step(images[batch], labels[batch]) for batch in batches]


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors as small as these are not worth sharing out
    steps = 10 if "--quick" in sys.argv else 1500
    training, other = Training(), Training()
    torch.manual_seed(1)
    step, rewards = train(training, steps)
    torch.manual_seed(1)
    _, eager_rewards = train(other, steps, compiled=False)

    print(step.explain())
    print(f"\n{rewards[0]:.0%} right at first, {torch.stack(rewards[-50:]).mean():.0%} in the end")
    same = all(map(torch.equal, rewards, eager_rewards))
    same &= all(map(torch.equal, training.policy.parameters(), other.policy.parameters()))
    print(f"as without the pass and without stepgraph, bit for bit: {same}")

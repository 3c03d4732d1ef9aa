"""Compile a whole training step in plain PyTorch: the idea of stepgraph, without stepgraph."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import networkx as nx
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.optim import Optimizer

OPTIMIZERS: dict[int, Optimizer] = {}


@torch.library.custom_op("scratch::seed", mutates_args=())
def seed(loss: Tensor) -> Tensor:
    """Return the gradient of a loss with respect to itself: here a backward begins."""
    return torch.ones_like(loss)


@torch.library.custom_op("scratch::update", mutates_args=("param",))
def update(param: Tensor, grad: Tensor, number: int) -> None:
    """Let a real optimizer update one parameter; it skips those that have no gradient."""
    if number in OPTIMIZERS:  # not while tracing: a trace changes nothing
        param.grad = grad
        OPTIMIZERS[number].step()
        param.grad = None


@contextmanager
def markers(optimizers: list[Optimizer]) -> Iterator[None]:
    """Let `backward()`, `step()` and `zero_grad()` leave nodes in a trace."""

    def backward(loss: Tensor) -> None:
        torch.autograd.backward(loss, torch.ops.scratch.seed(loss.detach()))

    def step(number: int) -> None:
        for param in parameters(optimizers[number]):
            if param.grad is not None:
                torch.ops.scratch.update(param, param.grad, number)

    def zero_grad(number: int) -> None:
        for param in parameters(optimizers[number]):
            param.grad = None

    original = Tensor.backward
    Tensor.backward = backward
    for number, optimizer in enumerate(optimizers):
        optimizer.step = lambda number=number: step(number)
        optimizer.zero_grad = lambda number=number: zero_grad(number)
    try:
        yield
    finally:
        Tensor.backward = original
        for optimizer in optimizers:
            del optimizer.step, optimizer.zero_grad


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def capture(step: Callable, optimizers: list[Optimizer], batch: tuple[Tensor, ...]) -> GraphModule:
    """Run the user's step once and write down every operator: forward, backward, updates."""
    params = [param for optimizer in optimizers for param in parameters(optimizer)]
    with markers(optimizers):
        captured = make_fx(lambda params, batch: step(*batch))(params, batch)
        for number in range(len(optimizers)):
            optimizers[number].zero_grad()  # the gradients of the trace
    OPTIMIZERS.update(enumerate(optimizers))
    type_nodes(captured.graph)
    return captured


def type_nodes(graph: Graph) -> None:
    """Say of each operator what it is for: forward, backward or update."""
    kind = "forward"
    for node in graph.nodes:
        if node.target is torch.ops.scratch.seed.default:
            kind = "backward"
        elif node.target is torch.ops.scratch.update.default:
            kind = "update"
        elif kind == "update":
            kind = "forward"
        node.meta["kind"] = kind if node.op == "call_function" else node.op


def memory_of(node: Node) -> Node:
    """Return the node whose memory this one shows: a view has none of its own."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None and any(result.alias_info for result in schema.returns):
        return memory_of(node.args[0])
    return node


def dependency_graph(graph: Graph) -> nx.DiGraph:
    """Return what must stay before what: values, and memory that is read and overwritten."""
    dependencies = nx.DiGraph()
    readers: dict[Node, list[Node]] = {}
    writer: dict[Node, Node] = {}
    for node in graph.nodes:
        dependencies.add_node(node)
        for value in node.all_input_nodes:
            memory = memory_of(value)
            dependencies.add_edge(value, node, kind="data")
            if memory in writer:
                dependencies.add_edge(writer[memory], node, kind="data")
            readers.setdefault(memory, []).append(node)
        if node.target is torch.ops.scratch.update.default:
            param = memory_of(node.args[0])
            for reader in readers[param]:
                if reader is not node:
                    dependencies.add_edge(reader, node, kind="anti")
            readers[param], writer[param] = [], node
    return dependencies


def update_early(graph: Graph, dependencies: nx.DiGraph) -> None:
    """Move each update up to where nothing that it must wait for is left, the readiest first."""
    updates = [node for node in graph.nodes if node.meta["kind"] == "update"]
    waits = {node: nx.ancestors(dependencies, node) for node in updates}
    position = {node: index for index, node in enumerate(graph.nodes)}
    order: dict[Node, None] = {}
    for node in sorted(updates, key=lambda node: len(waits[node])):
        order.update(dict.fromkeys(sorted(waits[node], key=position.__getitem__)))
        order[node] = None
    order.update(dict.fromkeys(graph.nodes))  # what no update waits for
    output = next(iter(reversed(graph.nodes)))
    for node in order:
        if node.op == "call_function":
            output.prepend(node)


def most_gradients_alive(graph: Graph) -> int:
    """Return how many gradients exist at once that no update has used yet."""
    uses = {node.args[1]: node for node in graph.nodes if node.meta["kind"] == "update"}
    alive, most = set(), 0
    for node in graph.nodes:
        alive |= {node} & uses.keys()
        most = max(most, len(alive))
        alive -= {gradient for gradient, user in uses.items() if user is node}
    return most


def replay(captured: GraphModule, params: list[Tensor], batch: tuple[Tensor, ...]) -> Tensor:
    """Run the graph, without autograd: the backward is in it."""
    with torch.no_grad():
        return captured(params, batch)


def train(how: str, steps: int = 20) -> list[Tensor]:
    """Train a small model and return its weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def training_step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(steps)]
    if how != "eagerly":
        captured = capture(training_step, [optimizer], batches[0])
        dependencies = dependency_graph(captured.graph)
        if how == "without anti edges":
            edges = dependencies.edges(data="kind")
            dependencies.remove_edges_from([(a, b) for a, b, kind in edges if kind == "anti"])
        count = Counter(node.meta["kind"] for node in captured.graph.nodes)
        before = most_gradients_alive(captured.graph)
        update_early(captured.graph, dependencies)
        captured.recompile()
        after = most_gradients_alive(captured.graph)
        print(f"{how}: {count['forward']} forward, {count['backward']} backward, ", end="")
        print(f"{count['update']} updates; gradients alive at once: {before}, then {after}")
    for batch in batches:
        if how == "eagerly":
            training_step(*batch)
        else:
            replay(captured, list(model.parameters()), batch)
    return list(model.parameters())


eager = train("eagerly")
compiled = train("compiled")
wrong = train("without anti edges")

print("compiled is eager, bit for bit:", all(map(torch.equal, eager, compiled)))
print("without anti edges, too:", all(map(torch.equal, eager, wrong)))

"""Flatten Dynamo's graph, which still calls autograd, to one ATen graph of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node, Proxy
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from stepgraph.capture.options import split_loop
from stepgraph.capture.options.split_loop import PART, combine_results
from stepgraph.capture.tracing import data_dependent
from stepgraph.capture.tracing.kinds import kind_of
from stepgraph.effects import Kind, effect_of
from stepgraph.torch_private import FRAMES, LIVE_GRAPH, is_internal


class Flattener(Interpreter):
    """Runs Dynamo's graph on its fake tensors inside `make_fx`, and labels each node.

    Args:
        graph_module: Dynamo's graph.
        refuse: Called with a reason if the graph cannot be captured.
        recast: Whether autocast casts weights again after an update.
    """

    def __init__(
        self, graph_module: GraphModule, refuse: Callable[[str], None], *, recast: bool
    ) -> None:
        super().__init__(graph_module)
        self.refuse, self.recast = refuse, recast
        self.consumed: set[Any] = set()
        self.handed_out: list[Tensor] = []
        self.phase = 0
        self.part: int | None = None

    @override
    def run_node(self, n: Node) -> Any:
        mode: Any = get_proxy_mode()
        graph = mode.tracer.graph
        before = graph._root.prev
        result = super().run_node(n)
        codes = [code for code, _ in n.meta.get(FRAMES, ())]
        kind, phase = kind_of(codes), self.phase
        at, loss = user_line(n), _loss(n)
        _name(mode.tracer, result, n.name)
        is_result = combine_results.__code__ in codes
        node = graph._root.prev
        while node is not before and node.op != "root":
            node.meta.setdefault("stepgraph.kind", kind)
            node.meta.setdefault("stepgraph.phase", phase)
            if self.part is not None:
                node.meta.setdefault("stepgraph.part", self.part)
                node.meta.setdefault("stepgraph.result", is_result)
            if at is not None:
                node.meta.setdefault("stepgraph.at", at)
            if loss is not None:
                node.meta.setdefault("stepgraph.loss", loss)
            node = node.prev
        if n.target is torch.autograd.grad and kind is Kind.BACKWARD:
            self.phase += 1
        return result

    @override
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        effect = effect_of(target) or effect_of(getattr(target, "default", None))
        if target in (PART, PART.default):
            (self.part,) = args
            return None
        if target is torch.autograd.grad:
            self._check_grad(args, kwargs)
        elif effect is not None:
            if effect.trace is not None:
                return effect.trace(*args)
            if effect.update is not None and self.recast:
                torch.clear_autocast_cache()
            self.handed_out += [args[effect.positions[name]] for name in effect.hands_out]
            if effect.detaches:
                args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        return super().call_function(target, args, kwargs)

    def finish(self) -> None:
        """Run the checks that need the whole step."""
        for value in self.handed_out:
            if value.requires_grad and not _nodes_of(value) & self.consumed:
                self.refuse(LIVE_GRAPH)

    def _check_grad(self, args: Any, kwargs: Any) -> None:
        """Record the autograd nodes that a backward consumes; refuse if it would miss a leaf."""
        outputs, inputs = args[0], args[1]
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        nodes = set().union(*(_nodes_of(output) for output in outputs))
        if not (kwargs.get("retain_graph") or kwargs.get("create_graph")):
            self.consumed |= {node for node in nodes if not hasattr(node, "variable")}
        if kwargs.get("allow_unused"):
            leaves = {id(leaf) for leaf in tree_leaves(inputs)}
            reached = [node.variable for node in nodes if hasattr(node, "variable")]
            if any(id(leaf) not in leaves for leaf in reached if leaf.requires_grad):
                self.refuse("backward() reaches a tensor that is not an input of the step")


def flatten(
    graph_module: GraphModule, refuse: Callable[[str], None], *, recast: bool = False
) -> GraphModule:
    """Return the flat ATen graph of a captured step, in program order.

    Args:
        graph_module: Dynamo's graph; its placeholders carry the fake tensors to trace with.
            Some of its functions are replaced by stand-ins; see `data_dependent`.
        refuse: Called with a reason; raises.
        recast: Whether autocast, on around the step, casts weights again after an update.

    Returns:
        A graph whose nodes carry `stepgraph.kind`, `stepgraph.phase` and `stepgraph.at`.
    """
    data_dependent.stand_in(graph_module)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    fakes = [node.meta["example_value"] for node in placeholders]
    symbolic = any(_is_symbolic(value) for value in fakes)
    flattener = Flattener(graph_module, refuse, recast=recast)
    caching = torch.is_autocast_cache_enabled()

    def step(*inputs: Any) -> Any:
        with _autocast_cache(caching):
            outputs = flattener.run(*inputs)
        flattener.finish()
        return outputs

    with torch.enable_grad():
        flat = make_fx(step, tracing_mode="symbolic" if symbolic else "fake")(*fakes)
    _check(flat, refuse)
    data_dependent.restore(flat)
    _drop_detach(flat)
    return flat


def _drop_detach(flat: GraphModule) -> None:
    """Drop `detach`: replay has no autograd. Kept if the user receives the tensor.

    A tensor that is returned or passed to the user's code must be a separate object.
    """
    detach = torch.ops.aten.detach.default
    for node in list(flat.graph.nodes):
        if node.target is detach:
            node.replace_all_uses_with(
                node.all_input_nodes[0],
                delete_user_cb=lambda user: (
                    user.op != "output" and not _passes_tensor_to_user(user)
                ),
            )
            if not node.users:
                flat.graph.erase_node(node)
    flat.recompile()


def _passes_tensor_to_user(node: Node) -> bool:
    """Return whether a node is an effect that passes a tensor to the user's code."""
    effect = effect_of(node.target)
    return effect is not None and bool(effect.hands_out)


@contextmanager
def _autocast_cache(caching: bool) -> Iterator[None]:
    """Cast a weight once per autocast region, as eager does; `make_fx` disables the cache."""
    was = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(caching)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was)
        torch.clear_autocast_cache()


def _check(flat: GraphModule, refuse: Callable[[str], None]) -> None:
    for node in flat.graph.nodes:
        if node.op == "get_attr" and isinstance(_attribute(flat, node.target), Tensor):
            value = _attribute(flat, node.target)
            if value.requires_grad or value.numel() > 1:
                refuse("the graph holds a tensor that is not an input of the step")
        for value in tree_leaves(node.meta.get("val")):
            if isinstance(value, Tensor) and value.layout is not torch.strided:
                refuse("sparse gradients or tensors")


def _attribute(module: Any, target: str) -> Any:
    for name in target.split("."):
        module = getattr(module, name)
    return module


def has_symbolic_sizes(graph_module: GraphModule) -> bool:
    """Return whether an input tensor of Dynamo's graph has a symbolic size."""
    return any(
        isinstance(node.meta.get("example_value"), Tensor)
        and _is_symbolic(node.meta["example_value"])
        for node in graph_module.graph.nodes
        if node.op == "placeholder"
    )


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, Tensor):
        return any(isinstance(size, torch.SymInt) for size in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat)


def _nodes_of(tensor: Tensor) -> set[Any]:
    """Return the autograd nodes reachable from `tensor`."""
    seen: set[Any] = set()
    todo: list[Any] = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(following for following, _ in node.next_functions)
    return seen


def _name(tracer: Any, result: Any, name: str) -> None:
    """Store the user's name for a value: the variable, or the function that made it.

    Dynamo's nodes have these names. If several nodes have the same value, the first is kept.
    """
    value = tracer.unwrap_proxy(result) if isinstance(result, Tensor) else None
    if isinstance(value, Proxy):
        value.node.meta.setdefault("stepgraph.value", name)


def _loss(node: Node) -> str | None:
    """Return the user's name for the loss of a backward."""
    if node.target is not torch.autograd.grad or not node.args:
        return None
    outputs = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
    return ", ".join(output.name for output in outputs if isinstance(output, Node)) or None


def user_line(node: Node) -> str | None:
    """Return `file:line` of the innermost user frame that led to `node`.

    None for nodes that split a batch: no line of the user's made them.
    """
    for code, line in reversed(node.meta.get(FRAMES, ())):
        if code.co_filename == split_loop.__file__:
            return None
        if not is_internal(code.co_filename):
            return f"{code.co_filename}:{line}"
    return None

"""Which storages the nodes of a flat graph stand for, read and write.

The answers come from operator schemas, so a new operator needs no entry anywhere. What schemas
leave out is listed at the top. Where an answer is not known - a Python function, a higher-order
operator - it errs on the safe side: its results may share memory with all its arguments, and it
may write all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Graph, Node

from stepgraph.ir.kind import argument
from stepgraph.ir.schema import Argument, schema_of

_HIDDEN_VIEWS = {
    "aten::_unsafe_view",
    "aten::unsafe_chunk",
    "aten::unsafe_split",
    "aten::unsafe_split_with_sizes",
}
"""Operators that return views although their schemas promise new memory."""

_MAY_COPY = {
    "aten::_autocast_to_full_precision",
    "aten::_autocast_to_reduced_precision",
    "aten::contiguous",
    "aten::flatten",
    "aten::pin_memory",
    "aten::ravel",
    "aten::reshape",
    "aten::reshape_as",
    "aten::resolve_conj",
    "aten::resolve_neg",
    "aten::to",
    "aten::type_as",
}
"""Operators that return either a view or a copy, so that they may read the values."""

_OVERWRITES = {
    "aten::_foreach_copy_",
    "aten::_foreach_zero_",
    "aten::copy_",
    "aten::fill_",
    "aten::zero_",
}
"""Operators that write their first argument without reading it."""

_RUNNING_STATISTICS = {
    "aten::_batch_norm_impl_index": "training",
    "aten::batch_norm": "training",
    "aten::batch_norm_gather_stats": None,
    "aten::batch_norm_gather_stats_with_counts": None,
    "aten::batch_norm_update_stats": None,
    "aten::cudnn_batch_norm": "training",
    "aten::instance_norm": "use_input_stats",
    "aten::miopen_batch_norm": "training",
    "aten::native_batch_norm": "training",
}
"""Operators that update running statistics unannounced, and the flag that makes them do so."""

_ARITHMETIC_MODULES = ("_operator", "builtins", "math")
_NUMBERS = ("int", "SymInt", "float", "bool", "number", "Scalar")


def storages_of(node: Node) -> frozenset[Node]:
    """Return the nodes that allocated the memory `node` refers to.

    Views and in-place operators refer to the memory of an argument; following those back ends at
    placeholders or at operators that allocate. A piece of a tuple that an operator allocated
    stands for itself: the first `getitem` of that piece. A result that may be one of several
    memories has all of them.
    """
    roots, seen, todo = set(), {node}, [node]
    while todo:
        current = todo.pop()
        for source in _sources(current):
            if source is current:
                roots.add(current)
            elif source not in seen:
                seen.add(source)
                todo.append(source)
    return frozenset(roots)


def all_storages(graph: Graph) -> dict[Node, frozenset[Node]]:
    """Return the storages of every node of a flat graph.

    Unlike `storages_of` it knows that two placeholders may share memory, when their fake tensors
    do. Cost: O(nodes + edges).
    """
    found: dict[Node, frozenset[Node]] = {}
    owners: dict[int, Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = frozenset([owners.setdefault(_memory(node), node)])
            continue
        sources = _sources(node)
        roots = (frozenset([s]) if s is node else found.get(s, frozenset([s])) for s in sources)
        found[node] = frozenset().union(*roots)
    return found


def writes_of(node: Node) -> frozenset[Node]:
    """Return the storages `node` writes; empty for a pure operator."""
    return frozenset().union(*map(storages_of, written_arguments(node)))


def written_arguments(node: Node) -> tuple[Node, ...]:
    """Return the arguments whose memory `node` writes."""
    if node.op in ("placeholder", "output", "get_attr") or _is_arithmetic(node):
        return ()
    schema = schema_of(node.target)
    if schema is None:
        return tuple(node.all_input_nodes)
    if not schema.writes and schema.name not in _RUNNING_STATISTICS:
        return ()
    written = [a for spec, a in _arguments(node) if spec.is_written]
    if _updates_statistics(node):
        written += [a for spec, a in _arguments(node) if spec.name.startswith("running_")]
    return tuple(dict.fromkeys(written))


def read_arguments(node: Node) -> tuple[Node, ...]:
    """Return the arguments whose values `node` reads; a view reads none."""
    if is_glue(node):
        return ()
    if _name(node) in _OVERWRITES:
        first, *others = _arguments_by_position(node)
        return tuple(dict.fromkeys(n for nodes in others for n in nodes if n not in first))
    return tuple(node.all_input_nodes)


def draws_random(node: Node) -> bool:
    """Return whether `node` draws from torch's random state, and so advances it."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded in target.tags
    return False


def is_glue(node: Node) -> bool:
    """Return whether `node` computes nothing: a view, an item of a tuple, a size, a constant."""
    if node.op == "get_attr" or _is_arithmetic(node):
        return True
    schema = schema_of(node.target)
    if schema is None or written_arguments(node):
        return False
    if schema.returns and all(spec.type in _NUMBERS for spec in schema.returns):
        return schema.name.startswith("aten::sym_")
    views = bool(schema.returns) and all(spec.aliases is not None for spec in schema.returns)
    return (views and schema.name not in _MAY_COPY) or schema.name in _HIDDEN_VIEWS


def _sources(node: Node) -> tuple[Node, ...]:
    """Return whose memory the result of `node` may be; `node` itself where it allocates."""
    if node.op in ("placeholder", "get_attr", "output"):
        return (node,)
    if node.target is operator.getitem:
        return _piece(node)
    if _is_arithmetic(node):
        return (node,)
    if not isinstance(node.target, torch._ops.OpOverload):
        return (node, *node.all_input_nodes)
    viewed = _viewed(node)
    copies = _name(node) in _MAY_COPY
    return (*viewed, node) if copies else viewed or (node, *_pieces(node))


def _viewed(node: Node) -> tuple[Node, ...]:
    if _name(node) in _HIDDEN_VIEWS:
        return tuple(node.all_input_nodes[:1])
    schema = schema_of(node.target)
    assert schema is not None
    if not schema.has_aliases:
        return ()
    aliases = [spec.aliases for spec in schema.returns if spec.aliases is not None]
    return tuple(
        value
        for spec, value in _arguments(node)
        if spec.aliases is not None and any(not a or a & spec.aliases for a in aliases)
    )


def _piece(node: Node) -> tuple[Node, ...]:
    """Return the source of an item: its list of views, or the first item of the same place."""
    source = node.args[0]
    if not isinstance(source, Node):
        return (node,)
    if not isinstance(source.target, torch._ops.OpOverload) or _viewed(source):
        return (source,)
    same = (user for user in source.users if user.args == node.args and _is_item(user))
    return (next(same, node),)


def _pieces(node: Node) -> tuple[Node, ...]:
    return tuple(user for user in node.users if _is_item(user))


def _is_item(node: Node) -> bool:
    return node.target is operator.getitem


def _arguments(node: Node) -> Iterator[tuple[Argument, Node]]:
    """Yield the schema entry and the node of each argument of an operator."""
    schema = schema_of(node.target)
    assert schema is not None
    for spec in schema.arguments:
        value = argument(node, spec.name)
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Node):
                yield spec, item


def _arguments_by_position(node: Node) -> list[list[Node]]:
    given = [*node.args, *node.kwargs.values()]
    lists = [value if isinstance(value, list | tuple) else [value] for value in given]
    return [[item for item in items if isinstance(item, Node)] for items in lists]


def _updates_statistics(node: Node) -> bool:
    name = _name(node)
    if name not in _RUNNING_STATISTICS:
        return False
    flag = _RUNNING_STATISTICS[name]
    return flag is None or bool(argument(node, flag))


def _name(node: Node) -> str | None:
    schema = schema_of(node.target)
    return None if schema is None else schema.name


def _is_arithmetic(node: Node) -> bool:
    """Return whether `node` is Python arithmetic on sizes, or takes an item."""
    target = node.target
    if node.op != "call_function" or isinstance(target, str):
        return False
    if isinstance(target, torch._ops.OpOverload):
        return False
    symbolic = getattr(target, "__name__", "").startswith("sym_")
    return symbolic or getattr(target, "__module__", "") in _ARITHMETIC_MODULES


def _memory(placeholder: Node) -> int:
    value = placeholder.meta.get("val")
    if isinstance(value, Tensor) and value.layout is torch.strided:
        return int(value.untyped_storage()._cdata)
    return -id(placeholder)

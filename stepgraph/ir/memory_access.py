"""The storages that the nodes of a flat graph refer to, read and write.

They follow from operator schemas, so a new operator needs no entry. Exceptions that schemas do not
state are listed in `schema.py`. A node without a schema - a Python function, a higher-order
operator - is treated conservatively: its results may share memory with all its arguments, and it
may write all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Graph, Node

from stepgraph.ir.effect_nodes import argument
from stepgraph.ir.schema import Argument, Schema, schema_of
from stepgraph.torch_private import storage_id

_ARITHMETIC_MODULES = ("_operator", "builtins", "math")


def storages_of(node: Node) -> frozenset[Node]:
    """Return the nodes that allocated the memory `node` refers to.

    Views and in-place operators refer to the memory of an argument; following those back ends at
    placeholders or at operators that allocate. An item of a tuple that an operator allocated is
    represented by the first `getitem` of that item. A result that may share one of several
    storages has all of them.
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

    Unlike `storages_of`, this gives one storage to placeholders whose fake tensors share memory.
    Cost: O(nodes + edges).
    """
    found: dict[Node, frozenset[Node]] = {}
    owners: dict[int, Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = frozenset([owners.setdefault(_memory(node), node)])
            continue
        sources = _sources(node)
        roots = [frozenset([s]) if s is node else found.get(s, frozenset([s])) for s in sources]
        found[node] = roots[0] if len(roots) == 1 else frozenset().union(*roots)
    return found


def writes_of(node: Node) -> frozenset[Node]:
    """Return the storages `node` writes; empty for a pure operator."""
    return frozenset().union(*map(storages_of, written_arguments(node)))


def written_arguments(node: Node) -> tuple[Node, ...]:
    """Return the arguments whose memory `node` writes."""
    schema = schema_of(node.target)
    if schema is None:
        quiet = node.op in ("placeholder", "output", "get_attr") or _is_arithmetic(node)
        return () if quiet else tuple(node.all_input_nodes)
    if schema.is_plain:
        return ()
    written = [a for spec, a in _arguments(node, schema) if spec.is_written]
    if _updates_statistics(node, schema):
        written += [a for spec, a in _arguments(node, schema) if spec.name.startswith("running_")]
    return tuple(dict.fromkeys(written))


def read_arguments(node: Node) -> tuple[Node, ...]:
    """Return the arguments whose values `node` reads; a view reads none."""
    if is_glue(node):
        return ()
    schema = schema_of(node.target)
    if schema is not None and schema.overwrites:
        first, *others = _arguments_by_position(node)
        return tuple(dict.fromkeys(n for nodes in others for n in nodes if n not in first))
    return tuple(node.all_input_nodes)


def draws_random(node: Node) -> bool:
    """Return whether `node` draws from torch's random state, which advances it."""
    schema = schema_of(node.target)
    return schema is not None and schema.draws


def is_glue(node: Node) -> bool:
    """Return whether `node` computes nothing: a view, an item of a tuple, a size, a constant."""
    schema = schema_of(node.target)
    if schema is None:
        return node.op == "get_attr" or _is_arithmetic(node)
    return schema.is_glue


def _sources(node: Node) -> tuple[Node, ...]:
    """Return the nodes whose memory the result of `node` may share; `node` if it allocates."""
    schema = schema_of(node.target)
    if schema is None:
        return _sources_in_python(node)
    if schema.is_plain:
        return (node,)
    viewed = _viewed(node, schema)
    return (*viewed, node) if schema.may_copy else viewed or (node, *_pieces(node))


def _sources_in_python(node: Node) -> tuple[Node, ...]:
    """Return the same for a node that calls no operator."""
    if node.target is operator.getitem:
        return _piece(node)
    if node.op in ("placeholder", "get_attr", "output") or _is_arithmetic(node):
        return (node,)
    return (node, *node.all_input_nodes)


def _viewed(node: Node, schema: Schema) -> tuple[Node, ...]:
    if schema.is_hidden_view:
        return tuple(node.all_input_nodes[:1])
    if not schema.has_aliases:
        return ()
    aliases = [spec.aliases for spec in schema.returns if spec.aliases is not None]
    return tuple(
        value
        for spec, value in _arguments(node, schema)
        if spec.aliases is not None and any(not a or a & spec.aliases for a in aliases)
    )


def _piece(node: Node) -> tuple[Node, ...]:
    """Return the source of an item: its list of views, or the first item of the same index."""
    source = node.args[0]
    if not isinstance(source, Node):
        return (node,)
    schema = schema_of(source.target)
    if schema is None or _viewed(source, schema):
        return (source,)
    same = (user for user in source.users if user.args == node.args and _is_item(user))
    return (next(same, node),)


def _pieces(node: Node) -> tuple[Node, ...]:
    return tuple(user for user in node.users if _is_item(user))


def _is_item(node: Node) -> bool:
    return node.target is operator.getitem


def _arguments(node: Node, schema: Schema) -> Iterator[tuple[Argument, Node]]:
    """Yield the schema entry and the node of each argument of an operator."""
    for spec in schema.arguments:
        value = argument(node, spec.name)
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Node):
                yield spec, item


def _arguments_by_position(node: Node) -> list[list[Node]]:
    given = [*node.args, *node.kwargs.values()]
    lists = [value if isinstance(value, list | tuple) else [value] for value in given]
    return [[item for item in items if isinstance(item, Node)] for items in lists]


def _updates_statistics(node: Node, schema: Schema) -> bool:
    flag = schema.statistics
    return flag == "" or (flag is not None and bool(argument(node, flag)))


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
        return storage_id(value)
    return -id(placeholder)

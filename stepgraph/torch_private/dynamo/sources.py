"""Dynamo's names of the sources of values, and their syntax.

The source of a value is its location. The name of a source is a Python expression over the local
names `L` and the globals `G` of the traced function, for example `L['model'].weight` or
`G['__import_torch'].pi`. No other file contains the syntax of such names.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch._dynamo.source import ConstantSource

_ROOT = re.compile(r"(?P<scope>[LG])\['(?P<name>[^']*)'\]")
_MODULE_ITEM = re.compile(r"\.(?:__dict__\[')?_(?:modules|parameters|buffers)(?:'\])?\['([^']*)'\]")
_NUMBER_GUARD = re.compile(r"(?P<source>[^\s,]+) == -?\d[\d.e+-]*\s*(#|$)")
_PARAMETERS = re.compile(r"[^()]+\._parameters")
_PARAMETERS_BY_POSITION = re.compile(rf"dict\.keys\({_PARAMETERS.pattern}\)")
_PARAMETER = re.compile(rf"(?P<table>{_PARAMETERS.pattern})\['(?P<key>[^'\\]+)'\]")
_GRADIENT = ".grad"


def source_name(source: Any) -> str:
    """Return the name of a source: a method of Dynamo's until torch 2.11, a property since."""
    return str(source.name() if callable(source.name) else source.name)


def constant_source(name: str) -> Any:
    """Return a source for a symbol that is not an input."""
    return ConstantSource(name)


def local_source(name: str) -> str:
    """Return Dynamo's name of a local name: an argument or a closure variable.

    Example:
        >>> local_source("batch")
        "L['batch']"
    """
    return f"L['{name}']"


def module_source(name: str) -> str:
    """Return Dynamo's name of an imported module.

    Example:
        >>> module_source("stepgraph.capture")
        "G['__import_stepgraph_dot_capture']"
        >>> module_source("stepgraph.capture").startswith(module_prefix("stepgraph"))
        True
    """
    return f"{module_prefix(name).removesuffix('_dot_')}']"


def module_prefix(package: str) -> str:
    """Return the prefix of Dynamo's names of the modules in a package.

    Example:
        >>> module_prefix("stepgraph")
        "G['__import_stepgraph_dot_"
    """
    return f"G['__import_{package.replace('.', '_dot_')}_dot_"


def item_source(name: str, key: Any) -> str:
    """Return Dynamo's name of an item.

    Example:
        >>> item_source("L['batch']", "x"), item_source("L['batch']", 0)
        ("L['batch']['x']", "L['batch'][0]")
    """
    return f"{name}[{key!r}]"


def local_root(name: str) -> str | None:
    """Return the local name that a source begins with, or None.

    Example:
        >>> local_root("L['batch'][0]"), local_root("G['model'].weight")
        ('batch', None)
    """
    root = _ROOT.match(name)
    return root["name"] if root is not None and root["scope"] == "L" else None


def is_within(name: str, owner: str) -> bool:
    """Return whether a source is `owner`, or an attribute or item below it.

    Example:
        >>> [is_within(name, "L['opt']") for name in ("L['opt'].state", "L['opt_2']")]
        [True, False]
    """
    return name == owner or name.startswith((f"{owner}.", f"{owner}["))


def owner_of_gradient(name: str) -> str | None:
    """Return the source of the tensor whose `.grad` a source is, or None.

    Example:
        >>> owner_of_gradient("L['w'].grad"), owner_of_gradient("L['w']")
        ("L['w']", None)
    """
    return name.removesuffix(_GRADIENT) if name.endswith(_GRADIENT) else None


def readable(name: str) -> str:
    """Return a source as the user would write it.

    Example:
        >>> readable("L['net']._modules['0']._parameters['weight']")
        'net.0.weight'
        >>> readable("L['self'].__dict__['_modules']['net'].scale")
        'self.net.scale'
        >>> readable("G['step'].__closure__[0].cell_contents")
        'step.closure[0]'
    """
    name = _ROOT.sub(r"\g<name>", name, count=1) if _ROOT.match(name) else name
    name = _MODULE_ITEM.sub(r".\1", name)
    return name.replace(".cell_contents", "").replace("__closure__", "closure")


def compared_number(guard: str) -> str | None:
    """Return the source that a guard compares with a number, or None for another guard.

    Args:
        guard: The guard as Dynamo prints it, with or without its comment.

    Example:
        >>> compared_number("L['scale'] == 0.5  # loss = loss * scale  # train.py:12 in step")
        "L['scale']"
        >>> compared_number("L['scale'] == L['other']")
    """
    found = _NUMBER_GUARD.match(guard)
    return found["source"] if found is not None else None


def is_parameter_table(name: str) -> bool:
    """Return whether a source is the `_parameters` of a module.

    Example:
        >>> is_parameter_table("L['net']._parameters")
        True
    """
    return _PARAMETERS.fullmatch(name) is not None


def reads_parameter_by_position(name: str) -> bool:
    """Return whether a source depends on the order of the keys of a module's `_parameters`.

    Example:
        >>> reads_parameter_by_position("list(dict.keys(L['net']._parameters))[0]")
        True
    """
    return _PARAMETERS_BY_POSITION.search(name) is not None


def parameter_item(name: str) -> tuple[str, str] | None:
    """Return the table and the key of a source that is a parameter of a module, else None.

    Example:
        >>> parameter_item("L['net']._parameters['weight']")
        ("L['net']._parameters", 'weight')
    """
    found = _PARAMETER.fullmatch(name)
    return (found["table"], found["key"]) if found is not None else None


class Location(NamedTuple):
    """The last step of a source: an attribute or an item of another source, or a name.

    Attributes:
        base: The source of the owner; None for a local name or a global.
        attribute: The name of the attribute, or empty.
        key: The key of the item, or None.
        name: The local name or the global, or empty.
        is_global: Whether `name` is a global.
    """

    base: Any
    attribute: str
    key: Any
    name: str
    is_global: bool


def location_of(source: Any) -> Location:
    """Return the last step of a source.

    Args:
        source: Dynamo's object, not its name.

    Example:
        >>> from torch._dynamo.source import AttrSource, LocalSource
        >>> location_of(AttrSource(LocalSource("model"), "weight")).attribute
        'weight'
        >>> location_of(LocalSource("model")).name
        'model'
    """
    local, of_module = (getattr(source, n, None) for n in ("local_name", "global_name"))
    return Location(
        base=getattr(source, "base", None),
        attribute=str(getattr(source, "member", "")),
        key=getattr(source, "index", None),
        name=str(local or of_module or ""),
        is_global=of_module is not None,
    )

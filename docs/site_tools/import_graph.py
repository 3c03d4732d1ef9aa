"""The import graph of `stepgraph/`, its layers, and the contents of its folders, from the sources.

Nothing is imported: files are parsed, so that imports under `if TYPE_CHECKING` count too.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "stepgraph"

_LAYERS = re.compile(r"^layers = \[[^\n]*\n(.*?)^\]", re.DOTALL | re.MULTILINE)
_LISTED = re.compile(r"^ {4}(\w+(?:\.\w+|/)) {2,}\S", re.MULTILINE)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the package by its dotted name; a package is its `__init__.py`."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def file_graph(root: Path = ROOT) -> nx.DiGraph[str]:
    """Return the graph of modules with an edge from each module to each module it imports."""
    files = modules(root)
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(files)
    for name, path in files.items():
        for targets in _import_lines(path, files):
            graph.add_edges_from((name, target) for target in targets)
    return graph


def circles(root: Path = ROOT) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not."""
    groups = nx.strongly_connected_components(file_graph(root))
    return sorted(sorted(group) for group in groups if len(group) > 1)


def package_graph(root: Path = ROOT) -> nx.DiGraph[str]:
    """Return the imports between packages; `lines` of an edge is its number of import lines."""
    files, names = modules(root), {name for layer in layers(root) for name in layer}
    lines: Counter[tuple[str, str]] = Counter()
    for name, path in files.items():
        source = _part_of(name)
        for targets in _import_lines(path, files):
            lines.update((source, target) for target in {*map(_part_of, targets)} - {source})
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sorted(names))
    for (source, target), count in sorted(lines.items()):
        if source in names and target in names:  # the root package imports all of them
            graph.add_edge(source, target, lines=count)
    return graph


def layers(root: Path = ROOT) -> list[list[str]]:
    """Return the packages of each layer that exist, top layer first, from the import contract."""
    contract = _LAYERS.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert contract is not None, "pyproject.toml has no import contract with layers"
    files = modules(root)
    found = []
    for line in re.findall(r'^\s*"([^"]+)"', contract[1], re.MULTILINE):
        names = [name.strip(" ()") for name in re.split(r"[|:]", line)]
        found.append([name for name in names if f"{PACKAGE}.{name}" in files])
    return [layer for layer in found if layer]


def folders(root: Path = ROOT) -> list[Path]:
    """Return the package folder and every folder below it."""
    below = (path for path in (root / PACKAGE).rglob("*") if path.is_dir())
    return [root / PACKAGE, *sorted(path for path in below if path.name != "__pycache__")]


def entries(folder: Path) -> list[str]:
    """Return the names of the files and, with a slash, of the folders in a folder."""
    found = (path for path in folder.iterdir() if path.name != "__pycache__")
    return sorted(f"{path.name}/" if path.is_dir() else path.name for path in found)


def listed(package: Path) -> list[str]:
    """Return the files and folders that the docstring of a package lists, in its order."""
    return _LISTED.findall(docstring(package / "__init__.py"))


def docstring(file: Path) -> str:
    """Return the docstring of a module as it is indented in the file."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")), clean=False) or ""


def summary(name: str, root: Path = ROOT) -> str:
    """Return the first line of the docstring of a package or module."""
    return docstring(modules(root)[f"{PACKAGE}.{name}"]).strip().split("\n")[0].rstrip(".")


def _import_lines(path: Path, files: dict[str, Path]) -> Iterator[set[str]]:
    """Yield the imported modules of the package for each import statement of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets: set[str] = set()
        if isinstance(node, ast.Import):
            targets = {alias.name for alias in node.names} & files.keys()
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import in line {node.lineno}"
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            targets = {name if name in files else str(node.module) for name in full} & files.keys()
        if targets:
            yield targets


def _part_of(module: str) -> str:
    """Return the package or module directly below the root package that a module belongs to."""
    return [*module.split("."), ""][1]

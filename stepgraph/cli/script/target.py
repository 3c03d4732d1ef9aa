"""`script.py:step`, the argument of `explain`, `profile` and `bench`: a step in a script."""

from __future__ import annotations

import argparse
import ast
import difflib
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stepgraph.errors import ConfigurationError

OBSERVE = "__stepgraph_observe__"
"""Global name in the script of the decorator that is added to its step."""

_Definition = ast.FunctionDef | ast.AsyncFunctionDef
_Scope = ast.Module | ast.ClassDef | _Definition


@dataclass(frozen=True)
class Target:
    """A step in a script.

    Attributes:
        script: The script's file.
        step: The dotted name of a function in it: `step`, `Model.training_step`, or `main.step`
            for one that is defined while `main` runs.
    """

    script: Path
    step: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse `script.py:step`; argparse adds the name of the argument to the error."""
        script, colon, step = text.rpartition(":")
        if not (colon and script and all(part.isidentifier() for part in step.split("."))):
            raise argparse.ArgumentTypeError(
                f"{text!r} does not name a step; write script.py:step or script.py:Class.method"
            )
        return cls(Path(script), step)

    def __str__(self) -> str:
        return f"{self.script}:{self.step}"

    def tree(self) -> ast.Module:
        """Return the script as a syntax tree in which the step is decorated with `OBSERVE`.

        The decorator is the innermost one, so it receives the undecorated function. Line numbers
        are those of the script.

        Raises:
            ConfigurationError: The file does not exist, is not Python, or has no such function.
        """
        tree = self._parsed()
        found = [node for name, node in _definitions(tree) if name == self.step]
        if not found:
            raise self._undefined(tree)
        for node in found:
            name = ast.Name(OBSERVE, ast.Load())
            node.decorator_list.append(ast.copy_location(name, node))
        return tree

    def _parsed(self) -> ast.Module:
        try:
            source = self.script.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"the script cannot be read: {error.strerror}", at=str(self.script)
            ) from error
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
            return ast.parse(source.decode(encoding), filename=str(self.script))
        except (SyntaxError, UnicodeDecodeError, ValueError) as error:
            line = getattr(error, "lineno", None)
            raise ConfigurationError(
                f"the script is not valid Python: {getattr(error, 'msg', error)}",
                at=f"{self.script}:{line}" if line else str(self.script),
            ) from error

    def _undefined(self, tree: ast.Module) -> ConfigurationError:
        names = list(dict.fromkeys(name for name, _ in _definitions(tree)))
        close = difflib.get_close_matches(self.step, names, n=1, cutoff=0.5)
        ends = [name for name in names if name.split(".")[-1] == self.step]
        return ConfigurationError(
            f"{self.script} defines no function {self.step}",
            found=", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "no functions",
            hint="; ".join(f"{self.script}:{name}" for name in (ends or close)[:3]) or None,
        )


def _definitions(scope: _Scope, prefix: str = "") -> Iterator[tuple[str, _Definition]]:
    """Yield the functions of a scope with their dotted names, in source order."""
    todo: list[ast.AST] = list(reversed(scope.body))
    while todo:
        node = todo.pop()
        if isinstance(node, _Definition):
            yield f"{prefix}{node.name}", node
        if isinstance(node, _Definition | ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")
        else:
            todo += reversed(list(ast.iter_child_nodes(node)))

"""Private names of torch are spelled in `stepgraph.torch_private` and nowhere else."""

import ast
import re
from pathlib import Path

import pytest

import stepgraph

PACKAGE = Path(stepgraph.__file__).parent
ALLOWED = re.compile(
    r"""torch\._ops(\..*)?        # the types of operators
    |torch\._foreach_\w+       # documented functions with private names
    |torch\._fused_\w+
    |torch\.utils\._(pytree|python_dispatch)(\..*)?
    |torch\.ops\..*            # operators
    |torch\.__version__""",
    re.VERBOSE,
)
FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "torch_private" not in path.relative_to(PACKAGE).parts
]


def private_names(path):
    """Yield the private names of torch in a file, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            is_private = name.startswith("torch.") and re.search(r"\._", name)
            if is_private and re.fullmatch(r"[\w.]+", name) and not ALLOWED.fullmatch(name):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_outside_uses_no_private_name_of_torch(path):
    assert list(private_names(path)) == []


def test_private_names_are_found():
    found = list(private_names(PACKAGE / "torch_private" / "internals.py"))

    assert any("torch._C._set_grad_enabled" in name for name in found)
    assert any("torch.overrides._get_current_function_mode_stack" in name for name in found)

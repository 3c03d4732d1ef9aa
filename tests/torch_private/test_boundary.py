"""Private names of torch are spelled in `stepgraph.torch_private` and nowhere else."""

import ast
import functools
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
ALLOWED_ATTRIBUTES = re.compile(
    r"""_foreach_\w+|_fused_\w+
    |_schema|_op               # of an `OpOverload`
    |_is_impure                # of a node of torch.fx
    |_native_batch_norm_legit|_assert_async|_is_all_true  # operators
    |_SubParsersAction         # of argparse
    |_getframe                 # of sys""",
    re.VERBOSE,
)
EVERY_FILE = sorted(PACKAGE.rglob("*.py"))
INSIDE = [path for path in EVERY_FILE if path.is_relative_to(PACKAGE / "torch_private")]
OUTSIDE = [path for path in EVERY_FILE if path not in INSIDE]
each_file_outside = pytest.mark.parametrize(
    "path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE))
)


@functools.cache
def syntax(path):
    return tuple(ast.walk(ast.parse(path.read_text())))


def private_names(path):
    """Yield the private names of torch in a file, with their lines."""
    for node in syntax(path):
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


def is_own(node):
    """Return whether an attribute is one of `self` or `cls`."""
    return ast.unparse(node.value) in ("self", "cls")


def defined_names(path):
    """Yield what a file defines: functions, classes, variables and attributes of `self`."""
    for node in syntax(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
            yield node.attr


OWN = {name for path in EVERY_FILE for name in defined_names(path)}


def foreign_attributes(path):
    """Yield the private attributes in a file that stepgraph does not define."""
    for node in syntax(path):
        name = node.attr if isinstance(node, ast.Attribute) and not is_own(node) else ""
        is_known = name in OWN or ALLOWED_ATTRIBUTES.fullmatch(name)
        if re.match("_[^_]", name) and not is_known:
            yield name


def private_strings(path):
    """Yield the strings in a file that might be names of private attributes."""
    for node in syntax(path):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and re.fullmatch(r"_[a-z]\w+", text) and text not in OWN:
            yield text


@each_file_outside
def test_a_file_outside_uses_no_private_name_of_torch(path):
    assert list(private_names(path)) == []


@each_file_outside
def test_a_file_outside_uses_no_private_attribute_that_stepgraph_does_not_define(path):
    assert {*foreign_attributes(path)} == set()


def test_names_in_torch_private_stand_in_no_string_elsewhere():
    inside = {n for path in INSIDE for n in (*foreign_attributes(path), *private_strings(path))}
    outside = {n for path in OUTSIDE for n in private_strings(path)}

    assert "_wrapped_by_lr_sched" in inside
    assert inside & outside == set()


def test_private_names_are_found():
    found = list(private_names(PACKAGE / "torch_private" / "internals.py"))

    assert any("torch._C._set_grad_enabled" in name for name in found)
    assert any("torch.overrides._get_current_function_mode_stack" in name for name in found)
    assert "_opt_called" in foreign_attributes(PACKAGE / "torch_private" / "internals.py")

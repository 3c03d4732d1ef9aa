"""Every effect says all there is to know of it, and nobody else names one."""

import ast
import dataclasses
from pathlib import Path

import pytest
import torch

import stepgraph
from stepgraph.effects import (
    STEP,
    Effect,
    Kind,
    RestoreObject,
    all_effects,
    effect_of,
    register,
)
from stepgraph.errors import ConfigurationError
from stepgraph.ir import Role

PACKAGE = Path(stepgraph.__file__).parent
BUILT_IN = [effect for effect in all_effects() if "::" not in effect.name]
ASKS_THE_REGISTRY = ("ir", "capture", "lowering", "runtime", "report", "compiler", "profiling")


@pytest.mark.parametrize("effect", BUILT_IN, ids=lambda effect: effect.name)
def test_the_parameters_of_run_are_arguments_of_the_operator(effect):
    names = list(effect.run.__annotations__)
    known = {*effect.positions, "tracked", "return"}

    assert set(names) <= known


@pytest.mark.parametrize("effect", BUILT_IN, ids=lambda effect: effect.name)
def test_fields_that_name_arguments_name_arguments_that_exist(effect):
    named = [*(effect.values_read or ()), *effect.hands_out]
    named += [name for name in effect.moves or () if name != "result"]
    named += [r.argument for r in (*effect.reads, *effect.writes) if r.argument is not None]
    named += [] if effect.in_region is None else effect.in_region.arguments
    named += [] if effect.strides_of is None else [effect.strides_of]

    assert set(named) <= set(effect.positions)


@pytest.mark.parametrize("effect", BUILT_IN, ids=lambda effect: effect.name)
def test_fields_do_not_contradict_each_other(effect):
    assert (effect.region == "inside") == (effect.in_region is not None)
    assert effect.moves != {} or not effect.launches
    assert not effect.removable or effect.returns_value
    assert effect.update is None or isinstance(effect.rehearsal, RestoreObject)
    if isinstance(effect.kind, Kind):
        assert effect.kind.colour.startswith("#")


def test_no_other_file_holds_the_name_of_an_effect_as_text():
    """Of the packages that ask the registry. Kinds and roles may have the same names."""
    names = {effect.name for effect in BUILT_IN}
    names -= {kind.value for kind in Kind} | {role.value for role in Role}
    found = []
    for package in ASKS_THE_REGISTRY:
        for path in sorted((PACKAGE / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and node.value in names:
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value}")

    assert found == []


@pytest.mark.parametrize("package", ["ir", "lowering", "runtime", "report"])
def test_graphs_programs_and_reports_import_no_single_effect(package):
    effects = {key for key, value in vars(stepgraph.effects).items() if isinstance(value, Effect)}
    found = []
    for path in sorted((PACKAGE / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "stepgraph.effects"
            ):
                found += [alias.name for alias in node.names if alias.name in effects]

    assert found == []


def test_every_field_has_a_sentence_in_the_docstring():
    fields = {field.name for field in dataclasses.fields(Effect)} - {"positions"}
    documented = {
        line.strip().partition(":")[0]
        for line in (Effect.__doc__ or "").splitlines()
        if line.startswith("        ") and ":" in line
    }

    assert fields <= documented


def test_an_operator_has_one_effect():
    with pytest.raises(ConfigurationError, match="already"):
        register(STEP)


@torch.library.custom_op("stepgraph_tests::returns", mutates_args=())
def returns(value: torch.Tensor) -> torch.Tensor:
    return value.clone()


@pytest.mark.parametrize(
    ("field", "message"),
    [("withhold", "would lack its value"), (RestoreObject("step"), "without an argument")],
)
def test_fields_that_contradict_each_other_are_refused(field, message):
    effect = dataclasses.replace(
        STEP,
        op=torch.ops.stepgraph_tests.returns.default,
        update=None,
        writes=(),
        moves={},
        rehearsal=field,
    )

    with pytest.raises(ConfigurationError, match=message):
        register(effect)
    assert effect_of(effect.op) is None

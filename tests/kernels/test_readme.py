"""The catalogue in kernels/README.md says what the code does."""

import re
from pathlib import Path

import pytest
import torch

from stepgraph_kernels import FAMILIES, VARIANTS
from stepgraph_kernels.layouts import LAYOUTS, Layout

README = (Path(__file__).parents[2] / "kernels" / "README.md").read_text()
ROWS = [
    [cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\|.*\|$", README, re.M)
]
CATALOGUE = [row for row in ROWS if len(row) == 6 and row[2].isdigit()]


def catalogue_row(variant):
    """The row of a variant: the one of its optimizer with as many states."""
    rule = variant.family.rule(variant.group())
    states = "0" if rule.factored else str(len(rule.states))
    kind = variant.optimizer.__name__.lower()
    rows = [r for r in CATALOGUE if r[2] == states]
    return rule, next(r for r in rows if kind in re.split(r"[ ,()]+", r[0].lower()))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_kernel_is_in_the_catalogue_with_its_bytes(variant):
    rule, row = catalogue_row(variant)

    plain = Layout("float32")
    assert int(row[3]) == plain.bytes_per_element(rule)
    assert int(row[4]) == plain.bytes_per_element(rule, norm=True)


def test_the_catalogue_has_nothing_else():
    used = {tuple(catalogue_row(variant)[1]) for variant in VARIANTS}

    others = {tuple(row) for row in CATALOGUE} - used
    assert {row[0] for row in others} == {"Muon"}
    assert {v.optimizer for v in VARIANTS} | {torch.optim.Muon} == set(FAMILIES)


def test_layouts_have_the_bytes_they_have():
    variant = next(v for v in VARIANTS if v.name == "adamw")
    rule = variant.family.rule(variant.group())
    told = {(int(row[1]), int(row[2])) for row in ROWS if len(row) == 3 and row[1].isdigit()}

    for layout in LAYOUTS:
        numbers = (layout.bytes_per_element(rule), layout.bytes_per_element(rule, norm=True))
        assert numbers in told, layout.name

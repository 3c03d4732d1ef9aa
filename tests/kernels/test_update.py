"""Every kernel against its reference in float64, in the interpreter or on the GPU at hand."""

import pytest
import torch

from stepgraph_kernels.catalogue import VARIANTS
from stepgraph_kernels.comparison import Settings, worst_difference
from stepgraph_kernels.layouts import LAYOUTS
from support.kernel_operands import DEVICE, INTERPRETER, targets_for

# the interpreter is NumPy, which warns about inf and nan
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

BLOCK = INTERPRETER.block
# around one block, below the vector width, several chunks, and never only powers of two
SHAPES = [(1,), (7,), (31, 33), (BLOCK - 1,), (BLOCK,), (4 * BLOCK + 9,)]
# what depends on the number of the step is computed once for all blocks
STEPS = {0: [(7,)], 1: SHAPES, 1000: [(7,)]}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_update_is_the_reference_in_float64(variant, step):
    settings = Settings(step=step, tuning=INTERPRETER)
    targets = targets_for(variant, LAYOUTS[:1], STEPS[step], settings)

    errors = worst_difference(variant.family, variant.group(), targets, settings)

    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_layout_in_one_update_is_the_reference(variant):
    settings = Settings(step=5, max_norm=1.0, scale=8.0, tuning=INTERPRETER)
    targets = targets_for(variant, LAYOUTS, [(3, 5), (1003,)], settings)

    errors = worst_difference(variant.family, variant.group(), targets, settings)

    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("grads", ["keep", "zero", "clipped"])
def test_gradients_are_left_as_asked(grads):
    variant = next(v for v in VARIANTS if v.name == "adamw")
    settings = Settings(max_norm=1.0, scale=4.0, grads=grads, tuning=INTERPRETER)
    targets = targets_for(variant, LAYOUTS, [(19,)], settings)

    errors = worst_difference(variant.family, variant.group(), targets, settings)

    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.75, 1.0])
def test_average_moves_by_its_weight(weight):
    variant = next(v for v in VARIANTS if v.name == "sgd")
    settings = Settings(average_weight=weight, tuning=INTERPRETER)
    targets = targets_for(variant, [LAYOUTS[-1]], [(19,)], settings)

    errors = worst_difference(variant.family, variant.group(), targets, settings)

    assert max(errors.values()) <= 1, errors
    if weight == 1.0:
        assert torch.equal(targets[0].average, targets[0].param)
    assert targets[0].param.device.type == DEVICE


def test_lanes_behind_the_end_have_no_direction():
    """With eps 0 such a lane computes 0 / 0, which must not reach the norm of the layer."""
    variant = next(v for v in VARIANTS if v.name == "lamb")
    group = {**variant.group(), "eps": 0.0}
    settings = Settings(step=3, tuning=INTERPRETER)
    targets = targets_for(variant, LAYOUTS[:1], [(13,), (BLOCK + 9,)], settings)

    errors = worst_difference(variant.family, group, targets, settings)

    assert max(errors.values()) <= 1, errors

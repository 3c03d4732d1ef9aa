"""What every test runs under."""

import os
import warnings

import pytest
import torch
from hypothesis import settings

# before any test imports triton: without a device, kernels run in the interpreter
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# One thread: the tests' tensors are too small to share out, two pytest workers already fill a
# small machine, and bit-exact comparisons must not depend on how many cores it has.
torch.set_num_threads(1)

# Torch says this once for each process: not in whichever test reads such a number first, where it
# would be a warning that only the eager run of two gives.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    float(torch.ones((), requires_grad=True))

# A trace that has failed twice fails the third time, too: a step that falls back is traced twice,
# not in each of its eight calls. test_config.py tests the default, test_variants.py its meaning.
os.environ.setdefault("STEPGRAPH_MAX_CAPTURE_FAILURES", "2")

# `ci` draws the same examples every time, so that a red run is the change's own doing;
# HYPOTHESIS_PROFILE=nightly searches for new ones. No deadline: a capture takes seconds.
settings.register_profile("ci", max_examples=30, derandomize=True, deadline=None)
settings.register_profile("nightly", max_examples=3000, deadline=None, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(items):
    """Lift the time limits of a nightly run, also those of single tests: it takes hours."""
    if PROFILE == "nightly":
        for item in items:
            item.add_marker(pytest.mark.timeout(0), append=False)

"""Operands for the kernel tests."""

import torch

from stepgraph_kernels.comparison import make_target
from stepgraph_kernels.spec import Tuning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The interpreter pays for each program and each operation, not for elements: few, large blocks.
# A chunk of one block and a half of the largest shapes gives tensors of more than one chunk.
INTERPRETER = Tuning(block=1024, chunk=2048)


def targets_for(variant, layouts, shapes, settings, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        make_target(
            variant.family,
            variant.group(),
            layout,
            shape,
            generator=generator,
            device=torch.device(DEVICE),
            settings=settings,
        )
        for layout in layouts
        for shape in shapes
    ]

"""Orthogonalise many matrices of one shape at once."""

from __future__ import annotations

import torch
from torch import Tensor


def newton_schulz(
    matrices: Tensor, *, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Bring the singular values of each matrix near 1, as `torch.optim.Muon` does one by one.

    Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024. Three batched
    products a step, on the smaller side of the matrices.

    Args:
        matrices: `[batch, rows, columns]`, bfloat16. Read only.
        coefficients: Of the quintic.
        steps: How many iterations.
        eps: Least norm to divide by.

    Returns:
        `[batch, rows, columns]`, bfloat16, contiguous, new.
    """
    a, b, c = coefficients
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / norm.clamp(min=eps)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return (x.mT if tall else x).contiguous()

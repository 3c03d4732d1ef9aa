"""Float32 copies of low-precision weights and optimizer state, kept between updates.

In bfloat16 an update smaller than 1/256 of its weight is lost to rounding, and an average with
`beta = 0.999` does not change. So the update works on float32 copies and rounds them into the
optimizer's own tensors. The optimizer, its `state_dict()` and the model contain only the latter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from stepgraph.torch_private import version_of


class Masters:
    """The float32 copies of the parameters and the state of optimizers, by tensor.

    A copy is valid as long as nothing else has written its tensor. After a `load_state_dict()`, or
    an update outside of this class, it is made again from the tensor. A copy lives as long as its
    tensor.

    Example:
        >>> masters, weight = Masters(), torch.ones(1, dtype=torch.bfloat16)
        >>> masters.round_into([weight], [torch.tensor([1.001])])
        >>> weight, masters.of([weight])
        (tensor([1.], dtype=torch.bfloat16), [tensor([1.0010])])
    """

    def __init__(self) -> None:
        self._kept: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def of(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the float32 copy of each tensor; only an update may write it.

        Args:
            tensors: Of any floating-point type; a float32 tensor is returned itself.
        """
        return [t if t.dtype is torch.float32 else self._of(t) for t in tensors]

    def round_into(self, tensors: Sequence[Tensor], masters: Sequence[Tensor]) -> None:
        """Round float32 copies into their tensors, which are written, and keep them."""
        low = [(t, m) for t, m in zip(tensors, masters, strict=True) if t is not m]
        if not low:
            return
        torch._foreach_copy_([t for t, _ in low], [m for _, m in low])
        for tensor, master in low:
            self._kept[tensor] = master, version_of(tensor)

    def _of(self, tensor: Tensor) -> Tensor:
        kept: tuple[Tensor, int] | None = self._kept.get(tensor)
        if kept is not None:
            master, version = kept
            # a write through `.data` does not bump the version, so values are compared too
            if version == version_of(tensor) and torch.equal(master.to(tensor.dtype), tensor):
                return master
        return tensor.detach().float()

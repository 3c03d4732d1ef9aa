"""Float32 copies of low-precision weights and optimizer state, kept between updates.

In bfloat16 an update of less than 1/256 of its weight is lost by rounding, and an average with
`beta = 0.999` does not change. So the update runs on float32 copies, and the optimizer's own
tensors hold the rounded values. The optimizer, its `state_dict()` and the model do not contain the
copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from stepgraph.torch_private import version_of


class Masters:
    """The float32 copies of the parameters and the state of optimizers, by tensor.

    A copy is valid until other code writes its tensor: after a `load_state_dict()`, or an update
    that ran elsewhere, it is made again from the tensor. A copy is freed with its tensor.

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
            tensors: In bfloat16 or another floating-point dtype; a float32 one is its own copy.
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
            # a write through `.data` does not change the version, so values are compared
            if version == version_of(tensor) and torch.equal(master.to(tensor.dtype), tensor):
                return master
        return tensor.detach().float()

"""`AveragedModel`: the stand-in for a trace, the method for an eager call, its constants."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from stepgraph.capture.objects.base import TraceContext, TrackedObject
from stepgraph.capture.objects.table import entry_name, number_of, tracked
from stepgraph.capture.options.call_options import CallOptions, without_effect
from stepgraph.capture.options.current import updates
from stepgraph.effects import OPS
from stepgraph.torch_private import module_tables

_ema = OPS.ema


class TrackedAveragedModel(TrackedObject):
    """A `torch.optim.swa_utils.AveragedModel`.

    Attributes:
        averages: Its parameters and buffers.
    """

    def __init__(self, value: AveragedModel, name: str = "") -> None:
        super().__init__(value, name)
        self.averages: list[Tensor] = [*value.parameters(), *value.buffers()]
        self._held: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
            (table, tuple(table.values()))
            for module in value.modules()
            for table in module_tables(module)
        ]

    @override
    def stand_ins(self, context: TraceContext) -> dict[str, Any]:
        name = entry_name(self.number)

        def update_parameters(model: Any) -> None:
            if not updates():
                return
            with torch.no_grad():
                averages = [t.detach() for t in tracked(name).averages]
                parameters = [t.detach() for t in model.parameters()]
                _ema(averages, parameters, list(model.buffers()), number_of(name))

        return {"update_parameters": update_parameters}

    @override
    def eager_methods(
        self, options: CallOptions, updated: set[int]
    ) -> dict[str, Callable[..., Any]]:
        if options.updates:
            return {}
        return {"update_parameters": without_effect(self.value.update_parameters)}

    @override
    def unchanged(self) -> bool:
        return all(
            len(now) == len(then) and all(map(is_, now.values(), then)) for now, then in self._held
        )

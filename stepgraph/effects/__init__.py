"""The effects of a training step: what a trace leaves in a graph, and what that means everywhere.

An effect is one value of the class `Effect`. It says what its node reads and writes, how it is
printed, what a program runs for it and how a rehearsal takes it back. Every other package asks the
registry.

Files, in reading order:

    kind.py      the kinds of nodes, and their colours
    access.py    the vocabulary for what an effect reads and writes
    effect.py    `Effect`, and what its functions may use
    registry.py  `register`, and the effect of an operator
    builtin/     the effects of PyTorch's training loop
"""

import torch

from stepgraph.effects.access import (
    Resource,
    gradients_of,
    hyper_parameters,
    object_state,
    shared,
    slots_of,
    update_of,
)
from stepgraph.effects.builtin import (
    ADD_GRAD,
    CHECK,
    CLIPPED_STEP,
    EMA,
    FIRST_GRAD,
    HYPER,
    LOG,
    LR_STEP,
    SCALE_UPDATE,
    SCALED_STEP,
    SET_GRAD,
    SET_HYPER,
    STEP,
    STEP_PART,
    TOGGLE,
    UNSCALE,
    ZERO_GRAD,
    PartOfStep,
    UpdateAverage,
    run_step,
    step_with_scaler,
)
from stepgraph.effects.effect import (
    Effect,
    Emission,
    InRegion,
    NotRecordable,
    Objection,
    Phrase,
    RestoreObject,
    Update,
    Words,
)
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import all_effects, calls, effect_of, register, without_result

OPS = torch.ops.stepgraph
"""The operators of the built-in effects as they appear in graphs: `OPS.step.default` and so on."""

__all__ = [
    "ADD_GRAD",
    "CHECK",
    "CLIPPED_STEP",
    "EMA",
    "FIRST_GRAD",
    "HYPER",
    "LOG",
    "LR_STEP",
    "OPS",
    "SCALED_STEP",
    "SCALE_UPDATE",
    "SET_GRAD",
    "SET_HYPER",
    "STEP",
    "STEP_PART",
    "TOGGLE",
    "UNSCALE",
    "ZERO_GRAD",
    "Effect",
    "Emission",
    "InRegion",
    "Kind",
    "NotRecordable",
    "Objection",
    "PartOfStep",
    "Phrase",
    "Resource",
    "RestoreObject",
    "Update",
    "UpdateAverage",
    "Words",
    "all_effects",
    "calls",
    "effect_of",
    "gradients_of",
    "hyper_parameters",
    "object_state",
    "register",
    "run_step",
    "shared",
    "slots_of",
    "step_with_scaler",
    "update_of",
    "without_result",
]

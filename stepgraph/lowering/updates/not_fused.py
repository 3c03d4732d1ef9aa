"""Why the update of an optimizer does not run in a fused kernel."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Obstacle(Enum):
    """The reason why an update is not fused, with its sentence; `{}` is a detail."""

    EAGER_BACKEND = "the eager backend runs the optimizer's own step()"
    MASTERS_ON_GPU = "float32 master weights are kept for updates on a CPU only"

    # the class and its instance
    NO_CPU_KERNEL = "no fused CPU kernel for {}"
    NO_TRITON_KERNEL = "no Triton kernel for {}"
    NO_TRITON = "the Triton kernels cannot be imported: {}"
    STEP_REPLACED = "its step() was replaced"
    HOOKS = "code of the user's runs with step()"

    # options of a param group
    IMPLEMENTATION_CHOSEN = "its options choose another implementation"
    DIFFERENTIABLE_OR_CAPTURABLE = "differentiable or capturable"
    DIFFERENTIABLE = "differentiable"

    # tensors
    SEVERAL_DTYPES = "a param group of several dtypes"
    NOT_REAL_ON_CPU = "parameters that are no real numbers on the CPU"
    SEVERAL_DEVICES = "parameters on several devices"
    NOT_ON_GPU = "its parameters are not on a GPU"
    DTYPE_WITHOUT_KERNEL = "parameters that are not float32, bfloat16 or float16"
    NO_STATE = "it has not stepped every parameter yet"
    NO_GRADIENT = "no parameter has a gradient"
    STATE_NOT_TENSORS = "its state contains values that are not tensors"
    COUNTER_NOT_FLOAT32 = "state[{!r}] is not a float32 tensor"
    STRIDES_DIFFER = "strides of parameters, gradients and state differ"

    # the kernel
    KERNEL_REFUSES = "{}"
    KERNEL_FAILS = "the fused kernel fails: {}"
    KERNEL_DIFFERS = "the fused kernel differs from step()"


@dataclass(frozen=True)
class NotFused:
    """The reason why an update is not fused; prints as a sentence.

    Attributes:
        obstacle: The reason.
        detail: What belongs into the sentence: a class, or the message of an error.

    Example:
        >>> print(NotFused(Obstacle.NO_CPU_KERNEL, "RMSprop"))
        no fused CPU kernel for RMSprop
    """

    obstacle: Obstacle
    detail: str = ""

    def __str__(self) -> str:
        return self.obstacle.value.format(self.detail)

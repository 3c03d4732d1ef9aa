"""Every private part of torch that stepgraph touches, and nothing else.

TorchDynamo is used as a tracer: it converts the Python of a training step to one FX graph, with
guards for its assumptions, and bytecode for the Python writes of the step. Its code cache is not
used. Written against torch 2.11 to 2.13; `stepgraph.capture.self_test` checks the installed
version before the first capture.

Files, in reading order:

    dynamo/          Dynamo as a tracer
    inductor/        Inductor as a compiler
    internals.py     small private functions of torch under plain names
    clipping.py      torch's clipping functions
    thread_patch.py  replacement of a function in one thread only
    lazy_module.py   graph modules whose Python is generated on demand
    files.py         a test whether a file is internal
"""

from stepgraph.torch_private.clipping import (
    CLIP_CODES,
    NORM_CODES,
    PATCH_BACKWARD,
    PATCH_CLIP_VALUE,
    PATCH_SCALE_TO_NORM,
    clip_norm,
    clip_value,
    own_clip_norm,
    own_clip_value,
    scale_to_norm,
)
from stepgraph.torch_private.dynamo.errors import is_unsupported, user_stack
from stepgraph.torch_private.dynamo.guards import Guards
from stepgraph.torch_private.dynamo.hooks import FRAMES, LIVE_GRAPH, Inlined, TraceHooks, TraceStop
from stepgraph.torch_private.dynamo.scope import (
    TracedSizes,
    assume_constant_result,
    current_trace,
    is_tracing,
    shield_constants,
    tracing,
)
from stepgraph.torch_private.dynamo.sources import (
    Location,
    compared_number,
    is_within,
    item_source,
    local_root,
    local_source,
    location_of,
    module_prefix,
    module_source,
    owner_of_gradient,
    readable,
)
from stepgraph.torch_private.dynamo.trace import FrameBytecode, Traced, trace
from stepgraph.torch_private.files import is_internal
from stepgraph.torch_private.inductor.compile import (
    FakeInputs,
    compile_inference,
    has_unbacked,
)
from stepgraph.torch_private.inductor.cpp import (
    Layout,
    empty_strided_cpu,
    load_cpp,
    written,
)
from stepgraph.torch_private.inductor.wrapper import (
    KernelCall,
    MatrixProduct,
    Memory,
    Strided,
    Unreadable,
    Wrapper,
    read_wrapper,
)
from stepgraph.torch_private.internals import (
    DependentConstraint,
    all_modules_have_hooks,
    below_autograd,
    dispatch_modes,
    found_inf,
    function_modes,
    has_live_workers,
    has_saved_tensors_hooks,
    have_hooks,
    is_batched,
    is_profiling,
    is_wrapped_by_schedule,
    mark_stepped,
    module_tables,
    only_device_modes,
    optimizer_has_hooks,
    scale_tensor,
    scaling_in_step,
    set_grad_enabled,
    stop_workers,
    storage_id,
    version_of,
)
from stepgraph.torch_private.lazy_module import graph_module

__all__ = [
    "CLIP_CODES",
    "FRAMES",
    "LIVE_GRAPH",
    "NORM_CODES",
    "PATCH_BACKWARD",
    "PATCH_CLIP_VALUE",
    "PATCH_SCALE_TO_NORM",
    "DependentConstraint",
    "FakeInputs",
    "FrameBytecode",
    "Guards",
    "Inlined",
    "KernelCall",
    "Layout",
    "Location",
    "MatrixProduct",
    "Memory",
    "Strided",
    "TraceHooks",
    "TraceStop",
    "Traced",
    "TracedSizes",
    "Unreadable",
    "Wrapper",
    "all_modules_have_hooks",
    "assume_constant_result",
    "below_autograd",
    "clip_norm",
    "clip_value",
    "compared_number",
    "compile_inference",
    "current_trace",
    "dispatch_modes",
    "empty_strided_cpu",
    "found_inf",
    "function_modes",
    "graph_module",
    "has_live_workers",
    "has_saved_tensors_hooks",
    "has_unbacked",
    "have_hooks",
    "is_batched",
    "is_internal",
    "is_profiling",
    "is_tracing",
    "is_unsupported",
    "is_within",
    "is_wrapped_by_schedule",
    "item_source",
    "load_cpp",
    "local_root",
    "local_source",
    "location_of",
    "mark_stepped",
    "module_prefix",
    "module_source",
    "module_tables",
    "only_device_modes",
    "optimizer_has_hooks",
    "own_clip_norm",
    "own_clip_value",
    "owner_of_gradient",
    "read_wrapper",
    "readable",
    "scale_tensor",
    "scale_to_norm",
    "scaling_in_step",
    "set_grad_enabled",
    "shield_constants",
    "stop_workers",
    "storage_id",
    "trace",
    "tracing",
    "user_stack",
    "version_of",
    "written",
]

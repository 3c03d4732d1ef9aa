"""Every private part of torch that stepgraph touches, and nothing else.

TorchDynamo is used as a tracer: it turns the Python of a training step into one FX graph, gives
the facts it relied on as guards, and the Python writes of the step as bytecode. Its code cache is
not used. Written against torch 2.11 to 2.13; `stepgraph.capture.self_test` finds out whether the
torch at hand behaves as expected before anything is captured.
"""

from stepgraph.torch_private.autograd import below_autograd
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
from stepgraph.torch_private.data_loader import has_live_workers, stop_workers
from stepgraph.torch_private.dynamo.errors import is_unsupported, user_stack
from stepgraph.torch_private.dynamo.guards import Guards
from stepgraph.torch_private.dynamo.hooks import FRAMES, LIVE_GRAPH, Inlined, TraceHooks, TraceStop
from stepgraph.torch_private.dynamo.scope import (
    Seen,
    assume_constant_result,
    current_trace,
    is_tracing,
    shield_constants,
    tracing,
)
from stepgraph.torch_private.dynamo.trace import FrameBytecode, Traced, trace
from stepgraph.torch_private.files import is_internal
from stepgraph.torch_private.grad_scaler import found_inf
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
from stepgraph.torch_private.lazy_module import graph_module
from stepgraph.torch_private.profiler import is_profiling
from stepgraph.torch_private.vmap import is_batched

__all__ = [
    "CLIP_CODES",
    "FRAMES",
    "LIVE_GRAPH",
    "NORM_CODES",
    "PATCH_BACKWARD",
    "PATCH_CLIP_VALUE",
    "PATCH_SCALE_TO_NORM",
    "FakeInputs",
    "FrameBytecode",
    "Guards",
    "Inlined",
    "KernelCall",
    "Layout",
    "MatrixProduct",
    "Memory",
    "Seen",
    "Strided",
    "TraceHooks",
    "TraceStop",
    "Traced",
    "Unreadable",
    "Wrapper",
    "assume_constant_result",
    "below_autograd",
    "clip_norm",
    "clip_value",
    "compile_inference",
    "current_trace",
    "empty_strided_cpu",
    "found_inf",
    "graph_module",
    "has_live_workers",
    "has_unbacked",
    "is_batched",
    "is_internal",
    "is_profiling",
    "is_tracing",
    "is_unsupported",
    "load_cpp",
    "own_clip_norm",
    "own_clip_value",
    "read_wrapper",
    "scale_to_norm",
    "shield_constants",
    "stop_workers",
    "trace",
    "tracing",
    "user_stack",
    "written",
]

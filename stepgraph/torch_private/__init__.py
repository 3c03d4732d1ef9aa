"""Every private part of torch that stepgraph touches, and nothing else.

TorchDynamo is used as a tracer: it turns the Python of a training step into one FX graph, gives
the facts it relied on as guards, and the Python writes of the step as bytecode. Its code cache is
not used. Written against torch 2.11 to 2.13; `stepgraph.capture.self_test` finds out whether the
torch at hand behaves as expected before anything is captured.
"""

from stepgraph.torch_private.data_loader import has_live_workers, stop_workers
from stepgraph.torch_private.dynamo.errors import is_unsupported, user_stack
from stepgraph.torch_private.dynamo.guards import Guards
from stepgraph.torch_private.dynamo.hooks import LIVE_GRAPH, TraceHooks, TraceStop
from stepgraph.torch_private.dynamo.scope import (
    Seen,
    assume_constant_result,
    current_trace,
    is_tracing,
    shield_constants,
    tracing,
)
from stepgraph.torch_private.dynamo.trace import Around, Traced, trace
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
    "LIVE_GRAPH",
    "Around",
    "FakeInputs",
    "Guards",
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
    "compile_inference",
    "current_trace",
    "empty_strided_cpu",
    "found_inf",
    "graph_module",
    "has_live_workers",
    "has_unbacked",
    "is_batched",
    "is_profiling",
    "is_tracing",
    "is_unsupported",
    "load_cpp",
    "read_wrapper",
    "shield_constants",
    "stop_workers",
    "trace",
    "tracing",
    "user_stack",
    "written",
]

"""A device without a GPU that records operators and re-executes them on the same memory.

It has what makes CUDA graphs dangerous. A capture computes nothing: what it wrote is undone, so
that only replays count. A replay runs the same operators on the same addresses. Intermediate
memory belongs to the pool, and every replay of any graph in the pool first destroys all of it.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from stepgraph.lowering.updates.triton import KernelLaunch


class RecordingDevice:
    """Records what runs between `capture`'s begin and end.

    Attributes:
        captures: How many captures succeeded.
        pools: The pools it has given out: lists of the memory in them.
    """

    def __init__(self):
        self.captures = 0
        self.pools = []

    def new_pool(self):
        self.pools.append([])
        return self.pools[-1]

    def on_side_stream(self, work):
        return work()

    def capture(self, work, pool):
        recorder, random = _Recorder(), torch.get_rng_state()
        try:
            with recorder, recorder.kernels():
                results = work()
        finally:
            recorder.undo()
            torch.set_rng_state(random)
        self.captures += 1
        pool += recorder.allocated

        def replay():
            for tensor in pool:
                tensor.fill_(-(2**7) + 1)
            for operation in recorder.operations:
                operation()

        return replay, results


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations, self.allocated, self.saved = [], [], []
        self.known = set()

    @contextlib.contextmanager
    def kernels(self):
        """Record launches of kernels: they reach memory behind the dispatcher's back."""
        launch = KernelLaunch.launch

        def record(own, *arguments):
            factor = None if arguments[0] is None else arguments[0].detach()
            self.operations.append(lambda: launch(own, factor))

        KernelLaunch.launch = record
        try:
            yield
        finally:
            KernelLaunch.launch = launch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        if func._schema.is_mutable:
            for tensor in given:
                if id(tensor) not in self.known:
                    self.known.add(id(tensor))
                    self.saved.append((tensor, tensor.detach().clone()))
        results = func(*args, **kwargs)
        flat, spec = tree_flatten(results)
        memory = {tensor.untyped_storage()._cdata for tensor in given}
        fresh = [
            isinstance(r, torch.Tensor) and r.untyped_storage()._cdata not in memory for r in flat
        ]
        own = [r for r, is_fresh in zip(flat, fresh, strict=True) if is_fresh]
        self.allocated += own

        def operation():
            again, _ = tree_flatten(func(*args, **kwargs))
            for place, value, is_fresh in zip(flat, again, fresh, strict=True):
                if is_fresh:
                    place.copy_(value)

        self.operations.append(operation)
        return tree_unflatten(flat, spec)

    def undo(self):
        for tensor, before in reversed(self.saved):
            tensor.copy_(before)

"""Reading the Python that Inductor writes: all of what it does, or a refusal."""

import builtins

import pytest
import torch

from stepgraph.torch_private import KernelCall, MatrixProduct, Strided, Unreadable, read_wrapper
from support.inductor_wrappers import written_by_hand

INPUTS = [torch.ones(4, 4), torch.ones(4, 4).t()[:, 1:], torch.zeros(4, dtype=torch.int64)]

READABLE = """\
x, y, index = args
args.clear()
buf0 = empty_strided_cpu((4, 4), (4, 1), torch.float32)
extern_kernels.mm(x, x, out=buf0)
del x
return (buf0, )
"""


def test_calls_and_results_are_read_with_all_their_layouts():
    body = """\
x, y, index = args
args.clear()
buf0 = empty_strided_cpu((4, 3), (3, 1), torch.float32)
extern_kernels.mm(x, y, out=buf0)
buf1 = buf0; del buf0  # reuse
buf2 = empty_strided_cpu((2, 4), (4, 1), torch.float32)
view = reinterpret_tensor(buf1, (3, 4), (1, 3), 0)
extern_kernels.addmm(index, reinterpret_tensor(buf1, (2, 3), (3, 1), 3), view, alpha=1, out=buf2)
return (reinterpret_tensor(buf2, (8,), (1,), 0), buf1)
"""

    wrapper = read_wrapper(written_by_hand(body), INPUTS)

    first, second = wrapper.calls
    assert isinstance(first, MatrixProduct)
    assert isinstance(second, MatrixProduct)
    assert [t.memory.source for t in (first.a, first.b, second.bias)] == [0, 1, 2]
    assert (first.b.size, first.b.stride, first.b.offset) == ((4, 3), (1, 4), 0)
    assert first.b.memory.size_bytes == 4 * 12  # behind its offset in its storage
    assert second.a == Strided(first.out.memory, 3, (2, 3), (3, 1), torch.float32)
    assert (second.b.memory, second.b.stride) == (first.out.memory, (1, 3))
    assert second.bias.dtype == torch.int64
    assert first.bias is None
    flat, other = wrapper.results
    assert flat == Strided(second.out.memory, 0, (8,), (1,), torch.float32)
    assert other == first.out
    assert [t.memory.size_bytes for t in wrapper.results] == [32, 48]


def test_a_view_of_a_view_starts_where_the_view_does():
    body = """\
x, y, index = args
view = reinterpret_tensor(reinterpret_tensor(x, (3, 4), (4, 1), 4), (2, 4), (4, 1), 4)
buf0 = empty_strided_cpu((2, 4), (4, 1), torch.float32)
extern_kernels.mm(view, x, out=buf0)
return (buf0,)
"""
    compiled = written_by_hand(body)

    (call,) = read_wrapper(compiled, INPUTS).calls

    x = torch.arange(16.0).view(4, 4)
    (result,) = compiled([x, *INPUTS[1:]])
    assert torch.equal(result, torch.as_strided(x, call.a.size, call.a.stride, call.a.offset) @ x)
    assert call.a.offset == 8


LINES = [
    # other functions, other methods
    "torch.ops.aten.add_.Tensor(x, 1)",
    "aten.add_(x, 1)",
    "torch.mm(x, x, out=buf0)",
    "x.add_(1)",
    "x.resize_(0)",
    "buf0 = x.t()",
    "extern_kernels.bmm(x, x, out=buf0)",
    "extern_kernels.mm(x, x)",
    "assert_size_stride(x, (4, 4), (4, 1))",
    "empty_strided_cuda((4, 4), (4, 1), torch.float32)",
    "empty_strided_cpu((4, 4), (4, 1), torch.nothing)",
    "run_intermediate_hooks('buf0', buf0)",
    "self.partitions[0]([x])",
    "self.count += 1",
    "random.random()",
    # Python's own
    "len(x)",
    "print(x)",
    "import os",
    "from os import path",
    "global kept; kept = x",
    "torch.float32 = torch.float64",
    "(lambda: extern_kernels.mm(x, x, out=buf0))()",
    "assert x",
    "raise ValueError",
    # operators
    "x += 1",
    "x[0] = 1",
    "buf0 = x + 1",
    "buf0 = -x",
    "buf0 = [buf0, x][index == index]",
    "buf0 = (buf0, x)[x != x]",
    "buf0 = (buf0, x)[not x]",
    "buf0 = x and y",
    "buf0 = x if index else y",
    "buf0 = {x: buf0}[x]",
    "empty_strided_cpu((x, 4), (4, 1), torch.float32)",
    "empty_strided_cpu(x.shape, (4, 1), torch.float32)",
    "buf0 = x @ x",
    # branches, loops, handlers
    "if x: extern_kernels.mm(x, x, out=buf0)",
    "if args: extern_kernels.mm(x, x, out=buf0)",
    "for each in (x, y): extern_kernels.mm(each, x, out=buf0)",
    "while args: args.pop()",
    "try: x.add_(1)\nexcept: pass",
    "try: aten.add_(x, 1)\nfinally: args.clear()",
    "with x: extern_kernels.mm(x, x, out=buf0)",
    "yield x",
    "buf0 = [each for each in (x, buf0)][1]",
    # the words, with another meaning
    "extern_kernels.addmm(x, x, x, alpha=2, beta=1, out=buf0)",
    "extern_kernels.addmm(x, x, x, alpha=1, beta=0, out=buf0)",
    "extern_kernels.addmm(x, x, x, alpha=1, beta=0.5, out=buf0)",
    "extern_kernels.mm(x, 2, out=buf0)",
    "extern_kernels.mm(x, x, out=None)",
    "extern_kernels.mm(x, x, out=args)",
    "reinterpret_tensor(buf0, (4, 4), (4, 1), 1)",
    "reinterpret_tensor(buf0, (4, 4), (8, 1), 0)",
    "reinterpret_tensor(x, (4, 4), (4, 1), -4)",
    "reinterpret_tensor(args, (4, 4), (4, 1), 0)",
]


@pytest.mark.parametrize("line", LINES)
def test_whatever_is_no_call_of_a_kernel_is_refused(line):
    text = READABLE.replace("extern_kernels.mm(x, x, out=buf0)", line)

    with pytest.raises(Unreadable):
        read_wrapper(written_by_hand(text), INPUTS)


def test_the_same_wrapper_without_such_a_line_is_readable():
    (call,) = read_wrapper(written_by_hand(READABLE), INPUTS).calls

    assert isinstance(call, MatrixProduct)


@pytest.mark.parametrize(
    "returned", ["None", "buf0", "(buf0, None)", "(buf0, 3)", "3", "", "(buf0.t(),)", "((buf0,),)"]
)
def test_a_result_that_is_no_tensor_is_refused(returned):
    body = READABLE.replace("(buf0, )", returned)

    with pytest.raises(Unreadable):
        read_wrapper(written_by_hand(body), INPUTS)


def test_a_name_that_means_something_else_in_its_module_is_no_word():
    def twice(a, b, out):
        return torch.mm(a, b, out=out).mul_(2)

    class Kernels:
        mm, addmm = staticmethod(twice), torch.addmm

    for known in (
        {"extern_kernels": Kernels},
        {"empty_strided_cpu": torch.empty_strided},
        {"torch": torch.Tensor},
    ):
        with pytest.raises(Unreadable):
            read_wrapper(written_by_hand(READABLE, **known), INPUTS)


@pytest.mark.parametrize("kernel", [lambda x: None, torch.mm, builtins.print])
def test_a_kernel_that_is_not_one_of_inductors_is_refused(kernel):
    body = READABLE.replace("extern_kernels.mm(x, x, out=buf0)", "cpp_fused_0(x, buf0)")

    with pytest.raises(Unreadable):
        read_wrapper(written_by_hand(body, cpp_fused_0=kernel), INPUTS)


@pytest.mark.parametrize("inputs", [[*INPUTS[:2], 3], [*INPUTS[:2], None], INPUTS[:2]])
def test_inputs_that_are_not_the_tensors_it_takes_are_refused(inputs):
    with pytest.raises(Unreadable):
        read_wrapper(written_by_hand(READABLE), inputs)


def test_a_wrapper_with_defaults_or_a_closure_is_refused():
    x = torch.ones(2)

    class Runner:
        def closed(self, args):
            return (x,)

        def defaults(self, args, more=()):
            return args

    for compiled in (Runner().closed, Runner().defaults, len, lambda args: args):
        with pytest.raises(Unreadable):
            read_wrapper(compiled, [x])


@pytest.fixture(scope="module")
def kernel():
    """A kernel as Inductor compiles it: `out = a + b`, four elements."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache  # noqa: PLC0415  (seconds)

    source = """
extern "C" void kernel(const float* a, const float* b, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = a[i] + b[i];
}
"""
    types = ["const float*", "const float*", "float*"]
    return CppPythonBindingsCodeCache.load_pybinding(types, source)


def test_a_kernel_is_read_as_its_address(kernel):
    body = """\
x, y = args
buf0 = empty_strided_cpu((4,), (1,), torch.float32)
cpp_fused_add_0(x, y, buf0)
return (buf0,)
"""
    inputs = [torch.ones(4), torch.ones(4)]

    (call,) = read_wrapper(written_by_hand(body, cpp_fused_add_0=kernel), inputs).calls

    assert isinstance(call, KernelCall)
    assert call.address > 0
    assert [tensor.memory.source for tensor in call.arguments] == [0, 1, None]


@pytest.mark.parametrize("argument", ["3", "None", "(y,)", "torch.float32"])
def test_a_kernel_that_takes_something_else_than_tensors_is_refused(kernel, argument):
    body = f"""\
x, y = args
buf0 = empty_strided_cpu((4,), (1,), torch.float32)
cpp_fused_add_0(x, {argument}, buf0)
return (buf0,)
"""
    with pytest.raises(Unreadable):
        read_wrapper(written_by_hand(body, cpp_fused_add_0=kernel), [torch.ones(4), torch.ones(4)])

"""Operators that may raise depending on the values of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from stepgraph.ir import node_effect
from stepgraph.ir.memory_access import is_glue
from stepgraph.ir.schema import schema_of

_QUIET = {
    f"aten::{name}"
    for name in """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _log_softmax
    _log_softmax_backward_data _prelu_kernel _prelu_kernel_backward
    _scaled_dot_product_efficient_attention _scaled_dot_product_efficient_attention_backward
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_backward
    _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_flash_attention_for_cpu_backward _softmax _softmax_backward_data
    _to_copy addbmm addmm addmv addr amax amin any avg_pool2d avg_pool2d_backward baddbmm
    binary_cross_entropy_backward binary_cross_entropy_with_logits bmm cat clone
    constant_pad_nd convolution convolution_backward copy_ cumsum dot elu_backward
    embedding_dense_backward empty empty_like empty_strided fill_ full full_like
    gelu_backward glu glu_backward hardswish_backward hardtanh_backward huber_loss
    huber_loss_backward index_select_backward leaky_relu_backward linalg_vector_norm
    log_sigmoid_backward log_sigmoid_forward logsumexp max_pool2d_with_indices
    max_pool2d_with_indices_backward mean mm mse_loss mse_loss_backward mv native_batch_norm
    native_batch_norm_backward native_dropout native_dropout_backward native_group_norm
    native_group_norm_backward native_layer_norm native_layer_norm_backward new_empty
    new_empty_strided new_full new_ones new_zeros nll_loss2d_backward nll_loss_backward norm
    ones ones_like reflection_pad2d_backward scalar_tensor select_backward slice_backward
    smooth_l1_loss smooth_l1_loss_backward softplus_backward stack sum threshold_backward
    tril triu upsample_bilinear2d_backward upsample_nearest2d_backward var var_mean zero_
    zeros zeros_like
    """.split()  # noqa: SIM905  (a table)
}
"""Operators, besides the pointwise ones, that raise for no values."""


def may_raise(node: Node) -> bool:
    """Return whether `node` may raise for some values of its arguments; True if unknown.

    Wrong shapes and types do not count, because they would have raised during the trace. Neither
    do out-of-memory errors.
    """
    if node.op != "call_function" or is_glue(node):
        return False
    effect = node_effect(node)
    if effect is not None:
        return effect.may_raise
    schema = schema_of(node.target)
    if schema is None:
        return True
    if schema.name in _QUIET or schema.name.startswith("aten::_foreach_"):
        return False
    if schema.draws:
        return True  # checks the parameters of distributions
    return torch.Tag.pointwise not in node.target.tags or not _is_float(node)  # type: ignore[union-attr]


def _is_float(node: Node) -> bool:
    """Return whether all results are floating point or boolean: integers may be divided by 0."""
    tensors = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return bool(tensors) and all(
        v.dtype.is_floating_point or v.dtype is torch.bool for v in tensors
    )

"""Where a GPU's memory differs from what CPU ops show: one entry per behaviour, with its source.

Fake tensors take CPU paths. Each function here stands in for one that runs another kernel on
CUDA, and allocates what that kernel would. They are installed as module attributes, because the
recomputation of a checkpoint runs inside the autograd engine, where function modes do not reach.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import torch

FLASH_MAX_HEAD_DIM = 256
"""aten sdp_utils.cpp, check_head_dim_size_flash."""


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class FlashAttention(torch.autograd.Function):
    """FlashAttention-2: keeps q, k, v, out and fp32 logsumexp; never the score matrix.

    Source: flash_attn flash_api.cpp (mha_fwd, mha_bwd), which torch's flash kernel is built from:
    softmax_d and an fp32 accumulator of dq, rows rounded to 128 and head size to 32; under
    grouped-query attention dk and dv are first made for every query head.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any, like_query: bool) -> Any:
        """Shapes (b, heads, s, d); the output is laid out as the query, or else (b, s, heads, d).

        Flash makes its output like the query, so a caller that joins the heads copies it when the
        query was contiguous by heads; the memory-efficient kernel always goes by sequence.
        Source: flash_api.cpp, mha_fwd (``empty_like(q)``); aten
        native/transformers/cuda/attention.cu, _efficient_attention_forward.
        """
        b, heads, s, _ = query.shape
        if like_query and value.shape[-1] == query.shape[-1]:
            out = torch.empty_like(query)
        else:
            out = query.new_empty(b, s, heads, value.shape[-1]).transpose(1, 2)
        logsumexp = query.new_empty(b, heads, s, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return gradients of q, k, v and bias after making the kernel's temporaries."""
        query, key, value, _out, _logsumexp, bias = ctx.saved_tensors
        b, heads, s, d = query.shape
        rows = _round_up(s, 128)
        temporaries = [query.new_empty(b, heads, rows, dtype=torch.float32)]
        grad_query = torch.empty_like(query)
        temporaries.append(query.new_empty(b, heads, rows, _round_up(d, 32), dtype=torch.float32))
        if key.shape[1] != heads:
            temporaries.append(key.new_empty(b, key.shape[2], heads, d))
            temporaries.append(value.new_empty(b, value.shape[2], heads, value.shape[-1]))
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
        grad_bias = torch.empty_like(bias) if ctx.needs_input_grad[3] else None
        return grad_query, grad_key, grad_value, grad_bias, None


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """Pick the kernel CUDA would pick and make what it keeps.

    Flash takes 16-bit inputs without a mask; memory-efficient takes a mask but no grouped heads
    and turns a boolean mask into a bias it keeps; what is left runs as plain matrix products.
    Source: aten/native/transformers/cuda/sdp_utils.cpp (use_flash_attention,
    use_mem_efficient_attention), attention.cpp (convert_boolean_attn_mask).
    Leaves out: cuDNN's kernel; dropout's Philox state (16 bytes).
    """
    query, key, value = (_autocast_to_lower(tensor) for tensor in (query, key, value))
    half = query.dtype in (torch.float16, torch.bfloat16)
    grouped = enable_gqa and key.shape[1] != query.shape[1]
    if half and attn_mask is None and query.shape[-1] <= FLASH_MAX_HEAD_DIM:
        return FlashAttention.apply(query, key, value, None, True)
    if not grouped:
        bias = attn_mask
        if bias is not None and bias.dtype is torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=query.dtype)
        if bias is not None and bias.requires_grad:
            # A learned bias: its gradient is made for every sequence and then summed.
            bias = bias.expand(*query.shape[:3], key.shape[2]).contiguous()
        return FlashAttention.apply(query, key, value, bias, False)
    return _math_attention(query, key, value, attn_mask, dropout_p, is_causal, scale)


def _math_attention(
    query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: Any
) -> Any:
    """Plain products, as ``_scaled_dot_product_attention_math`` in aten/transformers."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        rows, columns = query.shape[-2], key.shape[-2]
        allowed = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril()
        mask = torch.zeros_like(allowed, dtype=query.dtype)
    scores = torch.matmul(query * root, (key * root).transpose(-2, -1))
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1)
    if dropout_p > 0:
        weights = dropout(weights, dropout_p)
    return torch.matmul(weights, value)


def flash_attention_forward(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    dropout: float = 0.0,
    scaling: Any = None,
    **kwargs: Any,
) -> Any:
    """Stand in for transformers' ``flash_attention_2`` entry, which takes grouped heads as is."""
    query, key, value = (_autocast_to_lower(tensor) for tensor in (query, key, value))
    out = FlashAttention.apply(query, key, value, None, True)
    return out.transpose(1, 2), None


class GroupedMatmul(torch.autograd.Function):
    """Experts' grouped product in fp32 and fp16, which CUDA runs and fake tensors refuse.

    Source: torch/_meta_registrations.py (_meta_grouped_mm_common asks for bf16), aten
    native/cuda/GroupedBlas.cpp (falls back to one product per group for other dtypes).
    """

    @staticmethod
    def forward(ctx: Any, tokens: Any, experts: Any, offsets: Any) -> Any:
        """Tokens (n, in) by experts (e, in, out) gives (n, out)."""
        ctx.save_for_backward(tokens, experts, offsets)
        return tokens.new_empty(tokens.shape[0], experts.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return gradients of tokens and experts."""
        tokens, experts, _offsets = ctx.saved_tensors
        return torch.empty_like(tokens), torch.empty_like(experts), None


def _grouped_mm_of_any_dtype(original: Callable[..., Any]) -> Callable[..., Any]:
    def grouped_mm(mat_a: Any, mat_b: Any, *, offs: Any = None, **kwargs: Any) -> Any:
        if mat_a.dtype is torch.bfloat16 or mat_b.dim() != 3:
            return original(mat_a, mat_b, offs=offs, **kwargs)
        return GroupedMatmul.apply(mat_a, mat_b, offs)

    return grouped_mm


def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: A002
    """CUDA's fused dropout keeps a mask of one byte an element.

    Source: aten/native/Dropout.cpp, is_fused_kernel_acceptable.
    """
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


# CUDA runs these in fp32 under autocast where CPU's list leaves them alone.
# Source: aten/autocast_mode.h, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE.
_FP32_UNDER_AUTOCAST = (
    (
        torch,
        (
            "softmax",
            "log_softmax",
            "layer_norm",
            "group_norm",
            "pow",
            "rsqrt",
            "norm",
            "exp",
            "log",
            "cumsum",
            "cumprod",
            "prod",
            "sum",
        ),
    ),
    (
        torch.Tensor,
        (
            "softmax",
            "log_softmax",
            "pow",
            "__pow__",
            "rsqrt",
            "norm",
            "exp",
            "log",
            "cumsum",
            "sum",
        ),
    ),
    (
        torch.nn.functional,
        (
            "softmax",
            "log_softmax",
            "layer_norm",
            "group_norm",
            "rms_norm",
            "cross_entropy",
            "nll_loss",
            "softplus",
            "gelu_new",
        ),
    ),
)


def _in_autocast() -> bool:
    return bool(torch.is_autocast_enabled("cpu"))


def _autocast_to_lower(tensor: Any) -> Any:
    if _in_autocast() and tensor.dtype is torch.float32:
        return tensor.to(torch.get_autocast_dtype("cpu"))
    return tensor


def _fp32_under_autocast(original: Callable[..., Any]) -> Callable[..., Any]:
    def widened(*args: Any, **kwargs: Any) -> Any:
        if not _in_autocast():
            return original(*args, **kwargs)
        half = (torch.float16, torch.bfloat16)
        wide = [
            arg.float() if isinstance(arg, torch.Tensor) and arg.dtype in half else arg
            for arg in args
        ]
        return original(*wide, **kwargs)

    return widened


def _install_functions() -> None:
    functional = torch.nn.functional
    functional.scaled_dot_product_attention = scaled_dot_product_attention
    functional.dropout = dropout
    for owner, name in ((functional, "grouped_mm"), (torch, "_grouped_mm")):
        if hasattr(owner, name):
            setattr(owner, name, _grouped_mm_of_any_dtype(getattr(owner, name)))
    for owner, names in _FP32_UNDER_AUTOCAST:
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, _fp32_under_autocast(getattr(owner, name)))


def install(attention: str) -> None:
    """Replace the functions above for the rest of the process; once is enough.

    Args:
        attention: ``flash`` also replaces transformers' entry for FlashAttention-2.
    """
    if torch.nn.functional.dropout is not dropout:
        _install_functions()
    if attention == "flash":
        try:
            from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        except ImportError:
            return
        ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = flash_attention_forward

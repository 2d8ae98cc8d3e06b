"""Losses that never hold all logits: stand-ins that allocate what their kernels allocate.

The real kernels are Triton, which no CPU runs. The head is made to hand its input on, and the
model's loss function then gets hidden states where it expects logits.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from .built import Built, WorkerError

TOKENS, VOCABULARY = 4096, 32768
"""Tile of TRL's chunked head: trl/kernels/chunked_logprob.py, TOKEN_CHUNK_SIZE, and
trl/trainer/utils.py, _CHUNKED_LOGPROB_CHUNK_SIZE (trl 1.16)."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """TRL's head: one tile of logits at a time, recomputed in backward, gradients summed in fp32.

    Source: trl/kernels/chunked_logprob.py, ChunkedLogProbFunction (trl 1.16).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, targets: Any, is_exact: bool) -> Any:
        """Hidden states (n, h), weights (V, h), targets (n); returns the loss."""
        n = hidden.shape[0]
        half = _compute_dtype(hidden)
        statistics = [hidden.new_empty(n, dtype=torch.float32) for _ in range(7)]
        _tile(hidden, weight, half, is_exact=is_exact)
        statistics.append(hidden.new_empty(n, dtype=torch.float32))
        log_z = hidden.new_empty(n, dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, targets, log_z)
        ctx.half, ctx.is_exact = half, is_exact
        return log_z.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Make the fp32 sums, one tile, and the gradients in the dtypes asked for."""
        hidden, weight, _targets, _log_z = ctx.saved_tensors
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        wide_hidden = hidden.new_empty(hidden.shape, dtype=torch.float32) if needs_hidden else None
        wide_weight = weight.new_empty(weight.shape, dtype=torch.float32) if needs_weight else None
        _tile(hidden, weight, ctx.half, is_exact=ctx.is_exact)
        return (
            None if wide_hidden is None else wide_hidden.to(hidden.dtype),
            None if wide_weight is None else wide_weight.to(weight.dtype),
            None,
            None,
        )


def _tile(hidden: Any, weight: Any, half: torch.dtype, *, is_exact: bool) -> None:
    # A profile takes the whole tile: below its tokens it errs high, by at most the tile.
    tokens = min(hidden.shape[0], TOKENS) if is_exact else TOKENS
    tile = hidden.new_empty(tokens, VOCABULARY, dtype=half)
    chunk = hidden.new_empty(tokens, hidden.shape[1], dtype=half) if half != hidden.dtype else None
    rows = weight[: min(weight.shape[0], VOCABULARY)].to(half)
    del tile, chunk, rows


class FusedCrossEntropy(torch.autograd.Function):
    """Liger's fused linear cross-entropy: gradients are made in forward, a chunk at a time.

    The chunk is the next power of two above ``tokens / (V / h)``, which no polynomial follows; a
    profile therefore takes twice that quotient, its upper bound, and errs high by less than
    2 h bytes a token.

    Source: liger_kernel/ops/fused_linear_cross_entropy.py (liger-kernel 0.8.1).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, is_exact: bool) -> Any:
        """Hidden states (n, h), weights (V, h); returns the loss."""
        n, width = hidden.shape
        vocabulary = weight.shape[0]
        half = _compute_dtype(hidden)
        factor = -(-vocabulary // width)
        share = -(-n // factor)
        rows = min(n, 1 << (share - 1).bit_length()) if is_exact else 2 * n // factor
        hidden, weight = hidden.to(half), weight.to(half)
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        losses = hidden.new_zeros(n, dtype=torch.float32)
        logits = hidden.new_empty(rows, vocabulary)
        product = hidden.new_empty(rows, width)
        del product
        if grad_weight is not None:
            product = torch.empty_like(weight)
            wide = product.float()
            del product, wide
        del logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients that forward made."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden, grad_weight, None


def _compute_dtype(hidden: Any) -> Any:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype


class PassOn(nn.Module):
    """A head that keeps its weight and returns its input."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.weight = head.weight

    def forward(self, hidden: Any) -> Any:
        """Return the hidden states as they are."""
        return hidden


def install(built: Built, loss: str, *, is_exact: bool) -> None:
    """Replace the model's loss by ``chunked`` or ``fused``; ``standard`` stays.

    ``is_exact`` takes kernels' chunk sizes as they are, for a single shape.

    Raises:
        WorkerError: when the model computes its loss in a way that cannot be replaced.
    """
    if loss == "standard":
        return
    model, head = headed(built, loss)
    stand_in = PassOn(head)
    model.set_output_embeddings(stand_in)

    def loss_function(logits: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        hidden = logits.reshape(-1, logits.shape[-1])
        if loss == "chunked":
            return ChunkedCrossEntropy.apply(hidden, stand_in.weight, labels.reshape(-1), is_exact)
        return FusedCrossEntropy.apply(hidden, stand_in.weight, is_exact)

    type(model).loss_function = property(lambda self: loss_function)


def headed(built: Built, loss: str) -> tuple[Any, nn.Linear]:
    """Return the model below any adapters, and its head, whose loss can be replaced.

    Raises:
        WorkerError: when the model computes its loss itself, or its head is more than a product.
    """
    model = built.model.get_base_model() if hasattr(built.model, "get_base_model") else built.model
    head, cls = model.get_output_embeddings(), type(model)
    # Every model has a loss_function; masked and encoder-decoder ones often never call it.
    asks = "loss_function" in inspect.unwrap(cls.forward).__code__.co_names
    if not asks or not isinstance(head, nn.Linear):
        raise WorkerError(
            f"{cls.__name__} computes its own loss, which is not to be replaced by the {loss} one; "
            "use --loss standard."
        )
    return model, head

"""Gradients as vectors: of a batch, their distance, and the weights that make one of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .model import trained
from .verify_examples import loss_of

_BLOCK = 1 << 22
"""Elements that are widened to fp64 at once."""


def flattened(parameters: list[nn.Parameter]) -> torch.Tensor:
    """Return a copy of what their gradients hold, in fp32; none counts as 0."""
    return torch.cat(
        [
            (torch.zeros_like(each) if each.grad is None else each.grad)
            .detach()
            .float()
            .reshape(-1)
            for each in parameters
        ]
    )


def gradient(model: nn.Module, batch: Any) -> torch.Tensor:
    """Return the gradient of the model's loss of one batch; no gradient is left behind."""
    parameters = trained(model)
    model.zero_grad(set_to_none=True)
    loss_of(model, batch).backward()
    found = flattened(parameters)
    model.zero_grad(set_to_none=True)
    return found


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the inner product, summed in fp64."""
    return sum(
        float(torch.dot(x.double(), y.double())) for x, y in zip(a.split(_BLOCK), b.split(_BLOCK))
    )


def norm(a: torch.Tensor) -> float:
    """Return the L2 norm."""
    return dot(a, a) ** 0.5


def combined(vectors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Return the weighted sum, in fp32 as buffers accumulate it."""
    total = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights):
        total.add_(vector, alpha=weight)
    return total


def compared(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Return the distance relative to ``expected``, the cosine, and the ratio of norms."""
    size, right = norm(found), norm(expected)
    return {
        "deviation": norm(found - expected) / right if right else float(size > 0),
        "cosine": dot(found, expected) / (size * right) if size and right else 0.0,
        "ratio": size / right if right else 0.0,
    }


class Parts:
    """Gradients of micro-batches, and how much of each is in another gradient."""

    def __init__(self, vectors: list[torch.Tensor]) -> None:
        self.vectors = vectors
        self._gram = sum(
            (wide @ wide.T for wide in _blocks(vectors)), torch.zeros((), dtype=torch.float64)
        )

    def __getitem__(self, position: int) -> torch.Tensor:
        return self.vectors[position]

    def weights_in(self, found: torch.Tensor, positions: list[int]) -> tuple[list[float], float]:
        """Return the weights of the parts at ``positions`` in ``found``, and the share left over.

        Least squares, in fp64 by the parts' inner products.
        """
        right = torch.tensor([dot(self[at], found) for at in positions], dtype=torch.float64)
        gram = self._gram[positions][:, positions].cpu()
        weights = torch.linalg.lstsq(gram, right.unsqueeze(1)).solution.squeeze(1).tolist()
        left = norm(found - combined([self[at] for at in positions], weights))
        size = norm(found)
        return weights, left / size if size else 0.0


def _blocks(vectors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the matrix of all vectors in fp64, so many columns at a time."""
    columns = max(1, _BLOCK // len(vectors))
    for pieces in zip(*(vector.split(columns) for vector in vectors)):
        yield torch.stack(pieces).double()

"""Sums over the micro-batch gradients of a window, without keeping the gradients.

Of every micro-batch only its squared length is kept, and all are added into one buffer, which is
all the memory that this takes. Pure torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch


class GradientSums:
    """``sum_j |s_j|^2`` and ``sum_j s_j`` of a window, for summed gradients ``s_j``.

    The buffer is in fp32 whatever the gradients are: a sum in bf16 would lose a micro-batch that
    is 256 times smaller, and so would the difference of two such sums.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._sum = [
            torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
            for parameter in parameters
        ]
        self.restart()

    def restart(self) -> None:
        """Begin a window."""
        for part in self._sum:
            part.zero_()
        self.sum_of_squares = 0.0
        self.num_tokens = self.squared_tokens = 0
        self.num_sequences = self.num_micro_batches = 0
        self.loss = 0.0
        """Summed over target tokens."""

    def add(
        self,
        gradients: Iterable[torch.Tensor | None],
        *,
        num_tokens: int,
        num_sequences: int,
        loss: float = 0.0,
    ) -> float:
        """Add one micro-batch: gradients of the loss summed over its target tokens, by parameter.

        Returns:
            The squared length of its gradient.
        """
        squares = []
        for part, gradient in zip(self._sum, gradients):
            if gradient is not None:  # an expert that no token went to
                squares.append(squared_length(gradient))
                part.add_(gradient)
        square = sum_of(squares)
        self.sum_of_squares += square
        self.num_tokens += num_tokens
        self.squared_tokens += num_tokens**2
        self.num_sequences += num_sequences
        self.num_micro_batches += 1
        self.loss += loss
        return square

    def result(self, over_ranks: Callable[[Any], Any] = lambda tensor: tensor) -> dict[str, Any]:
        """Return the window; ``over_ranks`` sums a tensor over all ranks in place."""
        counts = over_ranks(
            torch.tensor(
                [
                    *(self.num_micro_batches, self.num_sequences),
                    *(self.num_tokens, self.squared_tokens),
                    *(self.sum_of_squares, self.loss),
                ],
                dtype=torch.float64,
                device=self._sum[0].device,
            )
        ).tolist()
        square = sum_of([squared_length(over_ranks(part)) for part in self._sum])
        num_micro_batches, num_sequences, num_tokens, squared_tokens = map(int, counts[:4])
        return {
            "num_micro_batches": num_micro_batches,
            "num_sequences": num_sequences,
            "num_tokens": num_tokens,
            "squared_tokens": squared_tokens,
            "sum_of_squares": counts[4],
            "square_of_mean": square / num_tokens**2,
            "loss": counts[5] / num_tokens,
        }


def squared_length(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``|tensor|^2``, summed in fp64: two nearly equal ones are subtracted later."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).square()


def sum_of(scalars: Sequence[torch.Tensor]) -> float:
    """Return a sum of scalars, in one transfer from each device."""
    by_device: dict[Any, list[torch.Tensor]] = {}
    for scalar in scalars:
        by_device.setdefault(scalar.device, []).append(scalar)
    return sum(float(torch.stack(group).sum()) for group in by_device.values())

"""The noise scale in a training loop of your own: pure torch, fed by the parameters' own hooks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from batchplan.learning.noise import NoiseScale, Window, noise_scale

BLOCK = 5
"""Windows averaged into one: parameters move between them, so neighbours are alike."""


class NoiseMeter:
    """Measures while gradients accumulate in ``.grad``; the parameters' own hooks feed it.

    After every backward pass call ``micro``, and after the last one of an optimizer step
    ``window``; whether clipping comes before or after that call makes no difference, because the
    gradients are read as they are accumulated. The loss must be the mean over the target tokens
    of the whole window, as transformers' with ``num_items_in_batch``.

    A micro-batch's gradient is the difference of ``.grad``, taken in fp32. Where ``.grad`` itself
    is 16-bit it has already lost bits to rounding, which counts as noise.
    """

    def __init__(self, parameters: Iterable[Any], *, last: int = 100) -> None:
        """Watch parameters that train.

        Args:
            parameters: torch parameters; those that are frozen are left out, tied ones come once.
            last: windows that are kept: the noise scale grows as training goes on.
        """
        unique = {id(parameter): parameter for parameter in parameters if parameter.requires_grad}
        self._before: dict[int, Any] = {}
        self._is_first = True
        self._differences: dict[int, Any] = {}
        self._wholes: dict[int, Any] = {}
        self._micros: list[tuple[float, int, int]] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._read)
            for parameter in unique.values()
        ]
        self._parameters = list(unique.values())
        self.windows: deque[Window] = deque(maxlen=last)

    def micro(self, *, num_tokens: int, num_sequences: int = 1) -> None:
        """Close a micro-batch of so many target tokens, once its backward pass is over."""
        from batchplan.experiments.worker.sums import sum_of

        self._micros.append((sum_of(list(self._differences.values())), num_tokens, num_sequences))
        self._differences.clear()
        for parameter in self._parameters:
            if parameter.grad is None:
                continue
            before = self._before.get(id(parameter))
            if before is None:
                self._before[id(parameter)] = parameter.grad.detach().clone()
            else:
                before.copy_(parameter.grad)
        self._is_first = False

    def window(
        self, *, num_items: float | None = None, loss: float = 0.0, keep: bool = True
    ) -> Window | None:
        """Close the window of an optimizer step and return it; None of fewer than two gradients.

        Args:
            num_items: what the summed loss was divided by; None is the window's target tokens.
            loss: mean over target tokens, to go with the result.
            keep: whether it counts; False for steps of a warm-up.
        """
        from batchplan.experiments.worker.sums import sum_of

        micros, square = self._micros, sum_of(list(self._wholes.values()))
        self._micros, self._is_first = [], True
        self._wholes.clear()
        num_tokens = sum(tokens for _, tokens, _ in micros)
        if not keep or len(micros) < 2 or min(tokens for _, tokens, _ in micros) < 1:
            return None
        scale = (num_items or num_tokens) ** 2
        found = Window(
            num_micro_batches=len(micros),
            num_sequences=sum(sequences for _, _, sequences in micros),
            num_tokens=num_tokens,
            squared_tokens=sum(tokens**2 for _, tokens, _ in micros),
            sum_of_squares=scale * sum(each for each, _, _ in micros),
            square_of_mean=scale * square / num_tokens**2,
            loss=loss,
        )
        if self.windows and self.windows[-1].num_micro_batches > found.num_micro_batches:
            return None  # the short one at the end of an epoch
        self.windows.append(found)
        return found

    def result(self, *, block: int = BLOCK) -> NoiseScale:
        """Return the noise scale of the windows that are kept.

        Raises:
            SpecError: when there are too few for an interval.
        """
        return noise_scale(self.windows, block=block)

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _read(self, parameter: Any) -> None:
        """Square what was added to ``.grad`` since the last micro-batch.

        Under reentrant checkpointing a tied parameter gets here twice a pass; the last time counts.
        """
        from batchplan.experiments.worker.sums import squared_length

        gradient, key = parameter.grad.detach(), id(parameter)
        before = None if self._is_first else self._before.get(key)
        added = gradient if before is None else gradient.float() - before.float()
        self._differences[key] = squared_length(added)
        self._wholes[key] = squared_length(gradient)

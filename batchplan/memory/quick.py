"""The peak of every micro-batch and K at once: a few straight lines, of which the highest counts.

Live bytes at one instant are affine in the micro-batch for a given sequence length, so the peak is
the upper envelope of the instants' lines. A search asks for thousands of candidates; each costs a
handful of multiplications here and a whole bill in ``estimate.price``, which gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from batchplan.memory.activations import GradientLife, Instant, walk
from batchplan.memory.buffers import INPUT_BYTES_PER_TOKEN
from batchplan.memory.device import overhead_bytes
from batchplan.memory.reserve import least_bound_bytes, least_peak_bytes
from batchplan.memory.setting import Setting
from batchplan.profile import StageProfile

Line = complex
"""Bytes: ``real + imag * micro_batch``."""


class QuickPrice:
    """Least peak and bound of one layout at one sequence length.

    Agrees with ``estimate.price`` but for the rounding of single terms (below 100 bytes).
    """

    def __init__(self, setting: Setting, seq_len: int) -> None:
        self._seq_len = seq_len
        self._gpu = setting.gpu
        self._overhead_bytes = overhead_bytes(setting.gpu, setting.cluster)
        self._input_bytes = INPUT_BYTES_PER_TOKEN * seq_len
        self._fixed_bytes = setting.fixed_bytes
        known: dict[tuple[GradientLife, bool], list[Line]] = {}

        def lines(accum_steps: int, *, single: bool) -> list[Line]:
            found = [self._line(setting, setting.optimizer_instant)]
            for life in setting.lives(accum_steps):
                if (life, single) not in known:
                    stages = setting.profile.stages_at(1 if single else 2)
                    known[life, single] = self._lines(setting, stages, life)
                found += known[life, single]
            return _envelope(found)

        is_other = bool(setting.profile.single_sequence_stages)
        self._many = tuple(lines(steps, single=False) for steps in (1, 2))
        self._single = (
            tuple(lines(steps, single=True) for steps in (1, 2)) if is_other else self._many
        )

    def _lines(
        self, setting: Setting, stages: tuple[StageProfile, ...], life: GradientLife
    ) -> list[Line]:
        instants: Iterator[Instant[complex]] = walk(
            stages=stages,
            order=setting.profile.order,
            life=life,
            size=lambda polynomial: polynomial.line(self._seq_len),
            binding=_possible,
            keeps_inputs=setting.keeps_inputs,
        )
        return _envelope(self._line(setting, instant) for instant in instants)

    def _line(self, setting: Setting, instant: Instant[int] | Instant[complex]) -> Line:
        return self._fixed_bytes + setting.buffers.at(instant.place) + instant.num_bytes

    def allocated_bytes(self, micro_batch: int, accum_steps: int) -> int:
        """Return the peak of live tensors."""
        lines = (self._single if micro_batch == 1 else self._many)[accum_steps > 1]
        highest = max([line.real + line.imag * micro_batch for line in lines])
        return round(highest) + self._input_bytes * micro_batch * accum_steps

    def peak_bytes(self, micro_batch: int, accum_steps: int) -> int:
        """Return what is in use with the least reserve."""
        allocated = self.allocated_bytes(micro_batch, accum_steps)
        return least_peak_bytes(allocated, self._overhead_bytes)

    def bound_bytes(self, micro_batch: int, accum_steps: int) -> int:
        """Return the least upper bound: what exceeds the device here can never be confirmed."""
        return least_bound_bytes(self._gpu, self.peak_bytes(micro_batch, accum_steps))


def _possible(peaks: list[tuple[Line, int]]) -> list[tuple[Line, int]]:
    """Drop every peak of a pass that another one is nowhere below."""
    if len(peaks) == 1:
        return peaks
    by_line = {line + gradients: (line, gradients) for line, gradients in peaks}
    return [by_line[line] for line in _envelope(by_line)]


def _envelope(lines: Iterable[Line]) -> list[Line]:
    """Drop every line that another one is nowhere below."""
    kept: list[Line] = []
    for line in sorted(lines, key=_steepest_first):
        if not kept or line.real > kept[-1].real:
            kept.append(line)
    return kept


def _steepest_first(line: Line) -> tuple[float, float]:
    return -line.imag, -line.real

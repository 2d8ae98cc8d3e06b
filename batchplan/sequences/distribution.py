"""How many sequences have how many tokens: the empirical distribution, exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from batchplan.errors import SpecError

_MOST_BINS = 12
"""Bars of a histogram."""
_NICE = (1, 2, 5)
"""Widths of a bin are these times a power of ten."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Sequences of ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    num_sequences: int


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Distinct lengths in tokens, ascending, and how many sequences have each.

    >>> LengthDistribution.of([5, 3, 5])
    LengthDistribution(lengths=(3, 5), counts=(1, 2))
    """

    lengths: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Iterable[int]) -> LengthDistribution:
        """Return the distribution of single lengths, in any order.

        Raises:
            SpecError: when there is none, or one is below 1.
        """
        return cls.counted(Counter(lengths))

    @classmethod
    def counted(cls, counts: Mapping[int, int]) -> LengthDistribution:
        """Return the distribution of lengths that are counted already.

        Raises:
            SpecError: when there is none, or one is below 1.
        """
        if not counts:
            raise SpecError("There is no sequence to measure.")
        lengths = tuple(sorted(counts))
        if lengths[0] < 1:
            raise SpecError(f"A sequence has {lengths[0]} tokens: at least 1.")
        return cls(lengths, tuple(counts[length] for length in lengths))

    @property
    def num_sequences(self) -> int:
        """Sequences of all lengths."""
        return sum(self.counts)

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(n * count for n, count in zip(self.lengths, self.counts, strict=True))

    @property
    def mean(self) -> float:
        """Tokens of a sequence, on average."""
        return self.total_tokens / self.num_sequences

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.lengths[-1]

    def percentile(self, percent: int) -> int:
        """Return the smallest length that at least ``percent`` % of the sequences do not exceed.

        >>> LengthDistribution.of(range(1, 101)).percentile(90)
        90
        """
        wanted = -(-percent * self.num_sequences // 100)
        reached = accumulate(self.counts)
        return next(n for n, up_to in zip(self.lengths, reached, strict=True) if up_to >= wanted)

    def truncated(self, seq_len: int) -> LengthDistribution:
        """Return the distribution after every sequence is cut to ``seq_len`` tokens.

        >>> LengthDistribution.of([3, 5, 9]).truncated(4)
        LengthDistribution(lengths=(3, 4), counts=(1, 2))
        """
        cut: Counter[int] = Counter()
        for length, count in zip(self.lengths, self.counts, strict=True):
            cut[min(length, seq_len)] += count
        return LengthDistribution.counted(cut)

    def longer_than(self, seq_len: int) -> int:
        """Return how many sequences have more than ``seq_len`` tokens."""
        return sum(
            n for length, n in zip(self.lengths, self.counts, strict=True) if length > seq_len
        )

    def histogram(self) -> tuple[Bin, ...]:
        """Return bins of one width up to the 99th percentile; the last reaches the longest.

        >>> bins = LengthDistribution.of([1, 2, 2, 30]).histogram()
        >>> [(held.low, held.high, held.num_sequences) for held in bins]
        [(0, 4, 3), (5, 9, 0), (10, 14, 0), (15, 19, 0), (20, 24, 0), (25, 29, 0), (30, 30, 1)]
        """
        shortest, usual = self.lengths[0], self.percentile(99)
        width = _nice_width((usual - shortest) // _MOST_BINS + 1)
        first = shortest // width
        last = usual // width
        held: Counter[int] = Counter()
        for length, count in zip(self.lengths, self.counts, strict=True):
            held[min(length // width, last)] += count
        return tuple(
            Bin(
                low=at * width,
                high=self.longest if at == last else (at + 1) * width - 1,
                num_sequences=held[at],
            )
            for at in range(first, last + 1)
        )


def _nice_width(least: int) -> int:
    power = 1
    while True:
        for factor in _NICE:
            if factor * power >= least:
                return factor * power
        power *= 10

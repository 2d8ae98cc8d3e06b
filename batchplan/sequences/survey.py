"""What every sequence length would cost: tokens cut off, padding in each layout, packed bins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from batchplan.sequences.distribution import LengthDistribution
from batchplan.sequences.packing import packed_bins
from batchplan.sequences.padding import (
    padded_in_order,
    padded_in_random_order,
    rounded,
    slots,
)


class LayoutName(Enum):
    """How sequences become the rows of a micro-batch."""

    FIXED = "fixed"
    """Each padded to the sequence length."""
    LONGEST = "longest"
    """Each padded to the longest of its micro-batch, in random order."""
    GROUPED = "grouped"
    """The same with the epoch sorted by length."""
    PACKED = "packed"
    """Several in one row of the sequence length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One epoch in one layout."""

    name: LayoutName
    rows: int
    """Sequences, or bins when packed."""
    slots: float
    """Tokens with padding; the expected number in random order."""
    tokens: int
    """Tokens of the data, truncated."""

    @property
    def waste(self) -> float:
        """Share of the slots that is padding."""
        return max(0.0, 1 - self.tokens / self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeqLenRow:
    """One epoch at one sequence length."""

    seq_len: int
    num_truncated: int
    """Sequences that are cut."""
    lost_tokens: int
    tokens: int
    """Tokens that are left."""
    layouts: tuple[Layout, ...]

    def layout(self, name: LayoutName) -> Layout:
        """Return the layout of that name."""
        return next(layout for layout in self.layouts if layout.name is name)


def covering_power(length: int) -> int:
    """Return the smallest power of two that truncates nothing of ``length``.

    >>> covering_power(2048), covering_power(2049)
    (2048, 4096)
    """
    return 1 << (length - 1).bit_length()


def candidate_seq_lens(
    distribution: LengthDistribution, given: Iterable[int] = ()
) -> tuple[int, ...]:
    """Return the powers of two from the median to the longest length, and those given.

    >>> candidate_seq_lens(LengthDistribution.of([100, 300, 700]), [600])
    (512, 600, 1024)
    """
    seq_len, last = (
        covering_power(length) for length in (distribution.percentile(50), distribution.longest)
    )
    found = set(given)
    while seq_len <= last:
        found.add(seq_len)
        seq_len *= 2
    return tuple(sorted(found))


def survey(
    distribution: LengthDistribution, *, seq_lens: Iterable[int], micro_batch: int
) -> tuple[SeqLenRow, ...]:
    """Return what one epoch costs at each sequence length.

    Args:
        distribution: lengths before truncation.
        seq_lens: where sequences would be cut.
        micro_batch: sequences padded together.
    """
    number = distribution.num_sequences
    together = {
        LayoutName.LONGEST: padded_in_random_order(distribution, micro_batch),
        LayoutName.GROUPED: padded_in_order(distribution, micro_batch),
    }
    rows = []
    for seq_len in seq_lens:
        cut = distribution.truncated(seq_len)
        tokens = cut.total_tokens
        bins = packed_bins(cut, seq_len)
        sizes: dict[LayoutName, tuple[int, float]] = {
            LayoutName.FIXED: (number, number * rounded(seq_len)),
            **{n: (number, slots(distribution, padded, seq_len)) for n, padded in together.items()},
            LayoutName.PACKED: (bins, bins * seq_len),
        }
        rows.append(
            SeqLenRow(
                seq_len=seq_len,
                num_truncated=distribution.longer_than(seq_len),
                lost_tokens=distribution.total_tokens - tokens,
                tokens=tokens,
                layouts=tuple(
                    Layout(name=name, rows=count, slots=size, tokens=tokens)
                    for name, (count, size) in sizes.items()
                ),
            )
        )
    return tuple(rows)

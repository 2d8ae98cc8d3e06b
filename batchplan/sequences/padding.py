"""Padding a micro-batch to its longest sequence: how many sequences are padded to which length.

Which sequences share a micro-batch does not depend on where they are truncated, so the shares are
worked out once, and every sequence length is one sum over them (``slots``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchplan.sequences.distribution import LengthDistribution

PAD_TO_MULTIPLE = 8
"""Tensor cores want multiples of 8 in 16-bit arithmetic, so collators round up to that.

Source: ``pad_to_multiple_of`` of transformers' data collators (data/data_collator.py), there for
the tensor cores of compute capability 7.0 on; 8 is the multiple most set. A collator that does not
round needs at most 7 tokens a sequence less.
"""


def rounded(length: int) -> int:
    """Return a length after padding to the collator's multiple.

    >>> rounded(1001), rounded(1008)
    (1008, 1008)
    """
    return -(-length // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE


def slots(distribution: LengthDistribution, padded: Sequence[float], seq_len: int) -> float:
    """Return the tokens, padding included, of one epoch truncated to ``seq_len``.

    Args:
        distribution: the lengths, not truncated.
        padded: for each distinct length, the sequences that are padded to it.
        seq_len: where sequences are cut.
    """
    return math.fsum(
        number * rounded(min(length, seq_len))
        for length, number in zip(distribution.lengths, padded, strict=True)
    )


def padded_in_random_order(distribution: LengthDistribution, micro_batch: int) -> tuple[float, ...]:
    """Return, for each distinct length, the expected sequences of an epoch padded to it.

    An epoch is shuffled and cut into micro-batches; the last may be short. Each is a random draw
    without replacement, and the longest of n out of N has at most length L with the chance
    C(F, n) / C(N, n), where F sequences have at most length L. The sum is the number of sequences.
    """
    total = distribution.num_sequences
    size = min(micro_batch, total)
    short = total % size
    whole_ones = _chances_of_longest(distribution, size)
    last_one = _chances_of_longest(distribution, short) if short else (0.0,) * len(whole_ones)
    return tuple(
        (total - short) * usual + short * rest
        for usual, rest in zip(whole_ones, last_one, strict=True)
    )


def _chances_of_longest(distribution: LengthDistribution, size: int) -> tuple[float, ...]:
    """Return the chance of each distinct length to be the longest of ``size`` sequences."""
    chances = []
    at_most, below = distribution.num_sequences, 1.0
    for count in reversed(distribution.counts):
        shorter = at_most - count
        lower = below * _ratio_of_choices(at_most, shorter, size)
        chances.append(below - lower)
        at_most, below = shorter, lower
    return tuple(reversed(chances))


def _ratio_of_choices(many: int, fewer: int, size: int) -> float:
    """Return C(fewer, size) / C(many, size) by the shorter of the two products it is."""
    if fewer < size:
        return 0.0
    if size <= many - fewer:
        return math.prod((fewer - i) / (many - i) for i in range(size))
    return math.prod((many - size - i) / (many - i) for i in range(many - fewer))


def padded_in_order(distribution: LengthDistribution, micro_batch: int) -> tuple[int, ...]:
    """Return, for each distinct length, the sequences padded to it when the epoch is sorted.

    Sorted from the longest down. transformers' ``LengthGroupedSampler`` (trainer_pt_utils.py)
    sorts stretches of 50 batches of a shuffled epoch, and so pads a little more than this.

    >>> padded_in_order(LengthDistribution.of([1, 2, 3, 4, 5]), 2)
    (1, 0, 2, 0, 2)
    """
    total = distribution.num_sequences
    padded = []
    longer = 0
    for count in reversed(distribution.counts):
        first = -(-longer // micro_batch) * micro_batch
        longer += count
        after = -(-longer // micro_batch) * micro_batch
        padded.append(max(0, min(after, total) - first))
    return tuple(reversed(padded))

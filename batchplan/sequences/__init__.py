"""Lengths of a data set's sequences: how they spread, what padding wastes, how they pack.

Everything works on counts of distinct lengths, so a million sequences cost no more than the few
thousand lengths they have.
"""

from __future__ import annotations

from batchplan.sequences.distribution import Bin, LengthDistribution
from batchplan.sequences.packing import packed_bins
from batchplan.sequences.padding import (
    PAD_TO_MULTIPLE,
    padded_in_order,
    padded_in_random_order,
    rounded,
    slots,
)
from batchplan.sequences.survey import (
    Layout,
    LayoutName,
    SeqLenRow,
    candidate_seq_lens,
    covering_power,
    survey,
)

__all__ = [
    "PAD_TO_MULTIPLE",
    "Bin",
    "Layout",
    "LayoutName",
    "LengthDistribution",
    "SeqLenRow",
    "candidate_seq_lens",
    "covering_power",
    "packed_bins",
    "padded_in_order",
    "padded_in_random_order",
    "rounded",
    "slots",
    "survey",
]

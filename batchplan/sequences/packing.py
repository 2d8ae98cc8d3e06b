"""Packing sequences into bins of one sequence length: first-fit decreasing, exactly.

The textbook algorithm looks at every bin for every sequence. Equal sequences fill the first bin
that has room as far as they go and then the next one, so runs of equal bins are handled as one,
and a tree finds the leftmost run with room: the cost follows the distinct lengths.
"""

from __future__ import annotations

import heapq

from batchplan.sequences.distribution import LengthDistribution

_NOWHERE = (1 << 62, 0)
"""A position after every bin, without room."""


def packed_bins(distribution: LengthDistribution, seq_len: int) -> int:
    """Return the bins that first-fit decreasing needs for sequences cut to ``seq_len``.

    It is at most 11/9 of the fewest bins there can be, plus 6/9.
    Source: Dósa 2007, "The tight bound of first fit decreasing bin-packing algorithm".

    >>> packed_bins(LengthDistribution.of([6, 5, 4, 3, 2]), 10)
    2
    """
    cut = distribution.truncated(seq_len)
    bins = _Bins(seq_len)
    for length, count in zip(reversed(cut.lengths), reversed(cut.counts), strict=True):
        bins.put(length, count)
    return bins.opened


class _Bins:
    """Bins in the order they were opened, as runs of neighbours with equal room."""

    def __init__(self, seq_len: int) -> None:
        self.opened = 0
        self._seq_len = seq_len
        self._runs: dict[int, list[tuple[int, int]]] = {}
        """For each room, a heap of runs: position of the first bin, number of bins."""
        self._leaves = 1 << seq_len.bit_length()
        self._leftmost: dict[int, tuple[int, int]] = {}
        """A segment tree over rooms: the first position in each range of them, and its room."""

    def put(self, length: int, count: int) -> None:
        """Place ``count`` sequences of ``length``, no longer than any placed before."""
        while count:
            room, start, num_bins = self._take(length) or self._open(length, count)
            count -= self._fill(room, start, num_bins, length=length, count=count)

    def _take(self, length: int) -> tuple[int, int, int] | None:
        """Remove and return the leftmost run that has room for ``length``; None without one."""
        _, room = self._first_with(length)
        if not room:
            return None
        start, num_bins = heapq.heappop(self._runs[room])
        self._update(room)
        return room, start, num_bins

    def _open(self, length: int, count: int) -> tuple[int, int, int]:
        start, num_bins = self.opened, -(-count // (self._seq_len // length))
        self.opened += num_bins
        return self._seq_len, start, num_bins

    def _fill(self, room: int, start: int, num_bins: int, *, length: int, count: int) -> int:
        """Fill a run from the left, keep what is left of it; return how many were placed."""
        each = room // length
        full = min(num_bins, count // each)
        rest = count - full * each if full < num_bins else 0
        part = 1 if rest else 0
        self._keep(room - each * length, start, full)
        self._keep(room - rest * length, start + full, part)
        self._keep(room, start + full + part, num_bins - full - part)
        return full * each + rest

    def _keep(self, room: int, start: int, num_bins: int) -> None:
        if room and num_bins:
            heapq.heappush(self._runs.setdefault(room, []), (start, num_bins))
            self._update(room)

    def _first_with(self, length: int) -> tuple[int, int]:
        """Return position and room of the leftmost bin that has at least ``length``."""
        node = self._leaves + length
        first = self._leftmost.get(node, _NOWHERE)
        while node > 1:
            if node % 2 == 0:
                first = min(first, self._leftmost.get(node + 1, _NOWHERE))
            node //= 2
        return first

    def _update(self, room: int) -> None:
        runs, node = self._runs[room], self._leaves + room
        self._leftmost[node] = (runs[0][0], room) if runs else _NOWHERE
        while node > 1:
            node //= 2
            self._leftmost[node] = min(
                self._leftmost.get(2 * node, _NOWHERE), self._leftmost.get(2 * node + 1, _NOWHERE)
            )

"""What is said of all rows: errors, coverage of the band, and whether the ranking is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from benchmarks.accuracy.statistics import Summary, summarise
from benchmarks.throughput.replay import Case, all_cases
from benchmarks.throughput.rows import Row

AS_GOOD = 0.05
"""A plan this near the best measured one is as good; two measured nearer are alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One row, predicted and measured."""

    case: Case
    low: float
    mid: float
    high: float
    is_fitted: bool
    """Whether the constants have seen it."""

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.mid / self.case.measured - 1

    @property
    def is_within(self) -> bool:
        """Whether the measurement lies in the band."""
        return self.low <= self.case.measured <= self.high

    def per_token(self, seconds: float) -> float:
        """Return seconds of one GPU for one token."""
        batch = self.case.batch
        return seconds / (batch.micro_batch * batch.accum_steps * batch.seq_len)


@cache
def all_scores() -> tuple[Score, ...]:
    """Return every row's score."""
    return tuple(_score(case) for case in all_cases())


def _score(case: Case) -> Score:
    time = case.predicted()
    return Score(
        case=case,
        low=time.low,
        mid=time.mid,
        high=time.high,
        # LitGPT's rows are not in the fit, but the launch floor and the cost of dequantisation
        # are read off them.
        is_fitted=not case.row.is_held_out or case.row.source == "litgpt",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One group of rows in a table."""

    name: str
    rows: str
    summary: Summary
    within: int


def lines(scores: Sequence[Score]) -> list[Line]:
    """Return one line per source, device and half, then one per source, then one for all."""
    kinds: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        row = score.case.row
        seen = "seen" if score.is_fitted else "held out"
        for name in (f"{row.source}, {row.gpu}", f"{row.source}, all", "everything"):
            for which in (seen, "all"):
                kinds.setdefault((name, which), []).append(score)
    order = ("held out", "seen", "all")
    found = []
    for (name, which), members in sorted(
        kinds.items(), key=lambda item: (item[0][0] == "everything", item[0][0])
    ):
        summary = summarise(score.error for score in members)
        assert summary is not None
        within = sum(score.is_within for score in members)
        found.append(Line(name=name, rows=which, summary=summary, within=within))
    return sorted(
        found, key=lambda line: (line.name == "everything", line.name, order.index(line.rows))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How well plans are put in order, over groups of rows that are alternatives."""

    groups: int
    right: int
    """Groups whose row predicted fastest is the fastest, or within ``AS_GOOD`` of it."""
    pairs: int
    """Pairs of one group that differ by more than ``AS_GOOD``."""
    pairs_right: int
    misses: tuple[tuple[Score, Score, float], ...]
    """Row predicted fastest, row measured fastest, and what choosing the first costs."""


def same_devices(row: Row) -> tuple[object, ...]:
    """Return what alternatives share: all but micro-batch, K, checkpointing and sharding."""
    return row.source, row.model, row.gpu, row.seq_len, row.method, row.num_ranks


def same_model(row: Row) -> tuple[object, ...]:
    """Return the same with any number of devices: throughput of one GPU is compared."""
    return row.source, row.model, row.gpu, row.seq_len, row.method


def ranking(scores: Iterable[Score], key: Callable[[Row], tuple[object, ...]]) -> Ranking:
    """Return how often the choice within a group is right."""
    groups: dict[tuple[object, ...], list[Score]] = {}
    for score in scores:
        groups.setdefault(key(score.case.row), []).append(score)
    pairs = pairs_right = 0
    misses = []
    chosen_from = [members for members in groups.values() if len(members) > 1]
    for members in chosen_from:
        picked = min(members, key=_predicted)
        best = min(members, key=_measured)
        lost = _measured(picked) / _measured(best) - 1
        if lost > AS_GOOD:
            misses.append((picked, best, lost))
        for one, two in combinations(members, 2):
            if abs(_measured(one) / _measured(two) - 1) > AS_GOOD:
                pairs += 1
                pairs_right += (_measured(one) < _measured(two)) == (
                    _predicted(one) < _predicted(two)
                )
    return Ranking(
        groups=len(chosen_from),
        right=len(chosen_from) - len(misses),
        pairs=pairs,
        pairs_right=pairs_right,
        misses=tuple(misses),
    )


def _predicted(score: Score) -> float:
    return score.per_token(score.mid)


def _measured(score: Score) -> float:
    return score.per_token(score.case.measured)

"""Results of one run of the benchmark, as ``results.json`` keeps them.

Rows that are not held out are kept one by one. Of held-out rows only summaries are kept: whoever
reads the file to improve something must not learn where a held-out row went wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.replay import (
    CURRENT,
    DIED,
    MATCHED,
    QUANTITIES,
    RAN,
    RIGHT,
    TIGHT,
    Comparison,
    Score,
)
from benchmarks.accuracy.statistics import Summary, average, summarise

RESULTS_FILE = Path(__file__).with_name("results.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotScored:
    """Rows of one source that were not scored, for one reason."""

    source: str
    reason: str
    row_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a table: a group of rows, one quantity, one choice of versions."""

    source: str
    """``all`` averages over the sources, each weighing the same."""
    quantity: str
    versions: str
    is_stated: bool
    """Whether only rows whose recipe is fully stated are in it."""
    summary: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """How often each answer to "does it fit" was right or wrong, over one group of rows."""

    is_stated: bool
    """Whether only rows whose recipe is fully stated are counted."""
    died: int
    """Runs that ran out of memory."""
    died_called_fitting: int
    ran: int
    ran_called_impossible: int
    ran_called_too_tight: int
    """The point fits, the 95 % bound does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that the report is generated from."""

    batchplan: str
    libraries: dict[str, dict[str, str]]
    scores: tuple[Score, ...]
    not_scored: tuple[NotScored, ...]
    held_out: tuple[Line, ...]
    held_out_verdicts: tuple[Verdicts, ...] = ()


def with_versions(scores: Iterable[Score], versions: str) -> list[Score]:
    """Return one score a row: with the versions it was measured with, where those can be had."""
    chosen: dict[str, Score] = {}
    for score in scores:
        # A row has its own versions beside the current ones, or only one of the two.
        if score.versions == versions or score.row_id not in chosen:
            chosen[score.row_id] = score
    return list(chosen.values())


def lines(scores: Iterable[Score], versions: tuple[str, ...] = (MATCHED, CURRENT)) -> list[Line]:
    """Return the tables of every quantity: per source, and averaged over sources.

    Rows whose recipe is fully stated come first, then all.
    """
    kept = [score for score in scores if score.is_counted]
    found = []
    for quantity in QUANTITIES:
        for is_stated in (True, False):
            for name in versions:
                chosen = _only(with_versions(kept, name), is_stated=is_stated)
                sources = list(dict.fromkeys(score.source for score in chosen))
                summaries = {source: _summary(chosen, source, quantity) for source in sources}
                summaries["all"] = average(summaries.values())
                found += [
                    Line(
                        source=source,
                        quantity=quantity,
                        versions=name,
                        is_stated=is_stated,
                        summary=summary,
                    )
                    for source, summary in summaries.items()
                    if summary is not None
                ]
    return found


def _only(scores: Iterable[Score], *, is_stated: bool) -> list[Score]:
    return [score for score in scores if score.is_stated or not is_stated]


def verdicts(scores: Iterable[Score], versions: str) -> tuple[Verdicts, ...]:
    """Return how the verdicts ended: of rows that are fully stated, and of all."""
    chosen = with_versions(scores, versions)
    found = []
    for is_stated in (True, False):
        asked = [score for score in _only(chosen, is_stated=is_stated) if score.verdict]
        counts = Counter(score.verdict for score in asked)
        died = sum(not score.measured_fits for score in asked)
        found.append(
            Verdicts(
                is_stated=is_stated,
                died=died,
                died_called_fitting=counts[DIED],
                ran=len(asked) - died,
                ran_called_impossible=counts[RAN],
                ran_called_too_tight=counts[TIGHT],
            )
        )
    return tuple(found)


def wrong_verdicts(scores: Iterable[Score], versions: str) -> list[Score]:
    """Return the rows whose verdict was wrong, or too tight."""
    return [one for one in with_versions(scores, versions) if one.verdict not in ("", RIGHT)]


def held_out_lines(scores: Iterable[Score]) -> tuple[Line, ...]:
    """Return the averages over sources alone, which give no single row away."""
    return tuple(line for line in lines(scores) if line.source == "all")


def save(results: Results, path: Path = RESULTS_FILE) -> None:
    """Write results as JSON, one row a line so that a change reads well."""
    data = asdict(results)
    scores = ",\n".join("    " + json.dumps(score) for score in data.pop("scores"))
    rest = json.dumps(data, indent=2)
    path.write_text(f'{rest[:-2]},\n  "scores": [\n{scores}\n  ]\n}}\n', encoding="utf-8")


def load(path: Path = RESULTS_FILE) -> Results:
    """Return the results that ``save`` wrote."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Results(
        batchplan=data["batchplan"],
        libraries=data["libraries"],
        scores=tuple(_score(item) for item in data["scores"]),
        not_scored=tuple(
            NotScored(**item | {"row_ids": tuple(item["row_ids"])}) for item in data["not_scored"]
        ),
        held_out=tuple(
            Line(**item | {"summary": Summary(**item["summary"])}) for item in data["held_out"]
        ),
        held_out_verdicts=tuple(Verdicts(**item) for item in data["held_out_verdicts"]),
    )


def _score(data: dict[str, Any]) -> Score:
    comparisons = tuple(
        Comparison(
            quantity=item["quantity"],
            predicted=tuple(item["predicted"]),
            measured=tuple(item["measured"]),
        )
        for item in data["comparisons"]
    )
    return Score(**data | {"comparisons": comparisons})


def _summary(scores: Iterable[Score], source: str, quantity: str) -> Summary | None:
    return summarise(
        comparison.error
        for score in scores
        if score.source == source
        for comparison in score.comparisons
        if comparison.quantity == quantity
    )

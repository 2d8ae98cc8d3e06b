"""Words and tables: on the terminal, and ``docs/accuracy.md`` from ``results.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from batchplan.units import GB
from benchmarks.accuracy.replay import MATCHED, QUANTITIES, Score
from benchmarks.accuracy.results import (
    Line,
    Results,
    Verdicts,
    lines,
    verdicts,
    with_versions,
    wrong_verdicts,
)
from benchmarks.accuracy.statistics import Summary

DOCUMENT = Path(__file__).parents[2] / "docs" / "accuracy.md"

LISTED_FROM = 0.03
"""Rows whose absolute error exceeds this are listed one by one."""

_MEANING = {
    "allocated": "The bill's live tensors beside `torch.cuda.max_memory_allocated`.",
    "reserved": "With the allocator's reserve, beside `torch.cuda.max_memory_reserved`.",
    "in use": "The whole bill, beside what the driver reports (nvidia-smi).",
    "unspecified": "The source does not say which figure it prints: no error where it lies "
    "between allocated and reserved.",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Return a Markdown table.

    >>> table(("a", "b"), [("1", "2")])
    '| a | b |\n| --- | --- |\n| 1 | 2 |'
    """
    text = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in text)


def percent(value: float, *, signed: bool = False) -> str:
    """Return a share in percent, with two digits below one percent.

    >>> percent(0.1234), percent(-0.0012, signed=True)
    ('12.3 %', '-0.12 %')
    """
    digits = 2 if abs(value) < 0.01 else 1
    return f"{100 * value:{'+' if signed else ''}.{digits}f} %"


def summary_tables(found: Iterable[Line]) -> str:
    """Return one table a quantity: a line per source and choice of versions."""
    head = ("source", "rows", "versions", "n", "mean", "median", "p95", "worst over", "worst under")
    parts = []
    for quantity, group in groupby(found, key=lambda line: line.quantity):
        rows = [
            (
                line.source,
                "fully stated" if line.is_stated else "all",
                line.versions,
                str(line.summary.count),
                percent(line.summary.mean),
                percent(line.summary.median),
                percent(line.summary.p95),
                percent(line.summary.worst_over, signed=True),
                percent(line.summary.worst_under, signed=True),
            )
            for line in group
        ]
        parts.append(f"**{quantity}** – {_MEANING[quantity]}\n\n{table(head, rows)}")
    return "\n\n".join(parts) if parts else "No row was scored."


def row_table(scores: Iterable[Score], above: float) -> str:
    """Return the comparisons whose absolute error exceeds ``above``, by source and size."""
    head = (
        "row",
        "fully stated",
        "versions",
        "quantity",
        "predicted GB",
        "measured GB",
        "error",
        "peak at",
    )
    found = [
        (score, comparison)
        for score in scores
        for comparison in score.comparisons
        if abs(comparison.error) > above
    ]
    found.sort(
        key=lambda pair: (
            QUANTITIES.index(pair[1].quantity),
            pair[0].source,
            -abs(pair[1].error),
            pair[0].row_id,
        )
    )
    rows = [
        (
            score.row_id,
            "yes" if score.is_stated else "no",
            score.versions,
            comparison.quantity,
            _span(comparison.predicted),
            _span(comparison.measured),
            percent(comparison.error, signed=True),
            score.peak_phase,
        )
        for score, comparison in found
    ]
    return table(head, rows) if rows else "None."


def verdict_table(found: Iterable[Verdicts]) -> str:
    """Return how often the answer to "does it fit" was wrong, and which way."""
    head = ("rows", "ran out of memory", "called fitting", "ran", "called impossible", "too tight")
    cells = [
        (
            "fully stated" if one.is_stated else "all",
            str(one.died),
            str(one.died_called_fitting),
            str(one.ran),
            f"{one.ran_called_impossible} ({percent(one.ran_called_impossible / max(1, one.ran))})",
            f"{one.ran_called_too_tight} ({percent(one.ran_called_too_tight / max(1, one.ran))})",
        )
        for one in found
    ]
    return table(head, cells)


def wrong_table(scores: Iterable[Score], versions: str) -> str:
    """Return the rows whose verdict was wrong or too tight."""
    cells = [
        (score.row_id, "yes" if score.is_stated else "no", score.verdict)
        for score in wrong_verdicts(scores, versions)
    ]
    return table(("row", "fully stated", "verdict"), cells) if cells else "No verdict was wrong."


def failure_text(scores: Iterable[Score]) -> str:
    """Return the rows that raised instead of answering."""
    failed = [score for score in scores if score.failure]
    return "\n".join(f"- {score.row_id} ({score.versions}): {score.failure}" for score in failed)


def not_scored_table(results: Results) -> str:
    """Return why rows were not scored, with their number."""
    rows = [(item.source, str(len(item.row_ids)), item.reason) for item in results.not_scored]
    return table(("source", "rows", "reason"), rows) if rows else "None."


def document(results: Results) -> str:
    """Return ``docs/accuracy.md``."""
    matched = with_versions(results.scores, MATCHED)
    counted = [score for score in matched if score.is_counted]
    others = [score for score in matched if not score.is_counted]
    versions = [
        (name, ", ".join(f"{package} {version}" for package, version in found.items()))
        for name, found in results.libraries.items()
    ]
    failures = failure_text(results.scores) or "None."
    return f"""<!-- Written by `python -m benchmarks.accuracy --write`; do not edit. -->

# Accuracy

`python -m benchmarks.accuracy` asks `batchplan.estimate` for the configuration of every published
measurement in `profiles/measured` and compares. Nothing is fitted to a row: a row's configuration
is mapped to keyword arguments, and where it leaves something open, the source's documented default
is taken (`benchmarks/accuracy/sources`). About one row in five, chosen by the hash of its id, is
held out: development never sees its error.

An error is (predicted - measured) / measured; mean, median and p95 are of absolute errors. Rows of
one source are alike, so figures are averaged per source, then over sources (line *all*). Only core
rows of grade A and B are averaged: dense text transformers, full, LoRA or QLoRA training, one GPU
or data parallel, whose configuration is known but for at most a minor assumption.

A row is *fully stated* when everything that its memory depends on is in the row, in the source's
own code or in a library's default; `benchmarks/accuracy/stated.py` says what the others leave open,
whether or not the answer is near.

*matched* traces with the library versions of the measurement where they can be had, otherwise with
the current ones; *current* always traces with the current ones.

Step times have their own page: [throughput.md](throughput.md).

{table(("versions", "packages"), versions)}

## Summary

{summary_tables(lines(results.scores))}

## Fits or not

Rows that name their device and ended one way or the other. An answer says "fits" when its 95 %
bound fits; where only the point does, it is too tight, and where not even the point does, it is
called impossible.

{verdict_table(verdicts(results.scores, MATCHED))}

{wrong_table(results.scores, MATCHED)}

## Against other estimators

{peers_table()}

## Held-out rows

{summary_tables(results.held_out)}

{verdict_table(results.held_out_verdicts)}

## Rows off by more than {percent(LISTED_FROM)}

{row_table(counted, LISTED_FROM)}

## Rows outside the averages

Not core, or of grade C; off by more than {percent(LISTED_FROM)}:

{row_table(others, LISTED_FROM)}

## Rows that raised

{failures}

## Not scored

{not_scored_table(results)}
"""


def peers_table() -> str:
    """Return how other estimators and ours do on the same rows, where they were asked."""
    from benchmarks.peers.answers import Answers
    from benchmarks.peers.tools import NOT_ASKED

    head = ("tool", "figure", "rows", "mean", "median", "p95", "ours: mean", "median", "p95")
    cells = [
        (
            f"{one.name} ({one.version})",
            one.says,
            f"{one.tool.count} of {', '.join(one.sources)}",
            *_three(one.tool),
            *_three(one.ours),
        )
        for one in Answers.load()
        if one.tool is not None and one.ours is not None
    ]
    if not cells:
        return "Nobody was asked: `python -m benchmarks.peers`."
    others = "\n".join(f"- {name}: {reason}" for name, reason in NOT_ASKED.items())
    return f"""`python -m benchmarks.peers` asks other estimators about the open, averaged rows
whose allocated peak is known and whose model has a plain config. A tool is asked only what it has a
way to be asked, and compared without what torch does not count as allocated; ours is averaged over
the same rows, per source and then over sources.

{table(head, cells)}

Not asked:

{others}"""


def _three(summary: Summary) -> tuple[str, str, str]:
    return percent(summary.mean), percent(summary.median), percent(summary.p95)


def overview(results: Results, versions: Sequence[str]) -> str:
    """Return what the command prints after a run."""
    parts = [summary_tables(lines(results.scores, tuple(versions)))]
    shown = versions[0]
    parts.append(f"Fits or not ({shown}):\n\n{verdict_table(verdicts(results.scores, shown))}")
    parts.append(wrong_table(results.scores, shown))
    failures = failure_text(results.scores)
    if failures:
        parts.append(f"Raised:\n{failures}")
    parts.append(f"Not scored:\n\n{not_scored_table(results)}")
    return "\n\n".join(parts)


def every_row(scores: Iterable[Score]) -> str:
    """Return the table of every comparison, for one source."""
    return row_table(scores, above=-1.0)


def _span(interval: tuple[int, int]) -> str:
    low, high = (f"{end / GB:.3f}" for end in interval)
    return low if low == high else f"{low}–{high}"

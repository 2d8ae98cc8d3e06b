"""``python -m benchmarks.accuracy``: replay measured rows and print how far off the answers are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import batchplan
from batchplan.units import GIB
from benchmarks.accuracy import report, results
from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.replay import (
    CURRENT,
    MATCHED,
    Score,
    ask,
    replay,
    sort_rows,
    versions_for,
)
from benchmarks.accuracy.rows import Row, load_rows
from benchmarks.accuracy.sources import case_of
from benchmarks.accuracy.stated import gap_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 unless an argument is wrong."""
    options = _parser().parse_args(arguments)
    versions = _versions(options)
    if options.row:
        return _show_row(options.row, versions)
    rows = load_rows()
    if options.source:
        rows = tuple(row for row in rows if row.source_group == options.source)
        if not rows:
            groups = sorted({row.source_group for row in load_rows()})
            print(f"No source {options.source}. There are: {', '.join(groups)}.", file=sys.stderr)
            return 2
    scorable, others = sort_rows(rows)
    if not options.write:
        scorable = [pair for pair in scorable if pair[0].is_held_out == options.held_out]
    scores = _replay_all(scorable, versions, options.jobs)
    found = _results(scores, others, separate=not options.held_out)
    if options.write:
        results.save(found)
        report.DOCUMENT.write_text(report.document(results.load()), encoding="utf-8")
        print(f"Wrote {results.RESULTS_FILE} and {report.DOCUMENT}.")
        return 0
    if options.source and not options.held_out:
        print(report.every_row(found.scores), end="\n\n")
    print(report.overview(found, versions))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--source", help="only rows of this source, each of them printed")
    parser.add_argument("--row", help="print the bill of this row")
    parser.add_argument("--current", action="store_true", help="only with the current versions")
    parser.add_argument("--matched", action="store_true", help="only with the measured versions")
    parser.add_argument("--held-out", action="store_true", help="score held-out rows instead")
    parser.add_argument(
        "--write", action="store_true", help="score every row; write results.json, docs/accuracy.md"
    )
    parser.add_argument("--jobs", type=int, default=1, help="rows traced at a time")
    return parser


def _versions(options: argparse.Namespace) -> tuple[str, ...]:
    if options.write or options.current == options.matched:
        return MATCHED, CURRENT
    return (CURRENT,) if options.current else (MATCHED,)


def _replay_all(
    scorable: Sequence[tuple[Row, Case]], versions: tuple[str, ...], jobs: int
) -> list[Score]:
    work = [
        (row, case, name)
        for row, case in scorable
        for name in versions_for(case, versions) or (CURRENT,)
    ]
    scores: list[Score] = []
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        for score in pool.map(lambda item: replay(*item), work):
            scores.append(score)
            print(f"\r{len(scores)}/{len(work)} {score.row_id:<40}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return scores


def _results(
    scores: Sequence[Score], others: Sequence[tuple[Row, str]], *, separate: bool
) -> results.Results:
    """Return results; held-out scores become summaries unless they are what was asked for."""
    open_scores = [score for score in scores if not (separate and score.is_held_out)]
    kept_back = [score for score in scores if separate and score.is_held_out]
    groups: dict[tuple[str, str], list[str]] = {}
    for row, reason in others:
        groups.setdefault((row.source_group, reason), []).append(row.id)
    libraries: dict[str, dict[str, str]] = {}
    for score in scores:
        name = score.versions
        if score.libraries:
            found = dict(score.libraries)
            if name == MATCHED:
                whose = "litgpt" if "litgpt" in found else "transformers"
                name = f"{MATCHED}, {whose} {found.get(whose)}"
            # Rows without adapters do not name peft.
            libraries[name] = libraries.get(name, {}) | found
    return results.Results(
        batchplan=batchplan.__version__,
        libraries=dict(sorted(libraries.items())),
        scores=tuple(open_scores),
        not_scored=tuple(
            results.NotScored(source=source, reason=reason, row_ids=tuple(ids))
            for (source, reason), ids in groups.items()
        ),
        held_out=results.held_out_lines(kept_back),
        held_out_verdicts=results.verdicts(kept_back, MATCHED),
    )


def _show_row(row_id: str, versions: tuple[str, ...]) -> int:
    row = next((row for row in load_rows() if row.id == row_id), None)
    if row is None:
        print(f"No row {row_id}.", file=sys.stderr)
        return 2
    try:
        case = case_of(row)
    except NotScoredError as reason:
        print(f"{row.id} is not scored: {reason}.")
        return 0
    if row.is_held_out:
        print(f"{row.id} is held out.", file=sys.stderr)
        return 2
    print(f"{row.id}: {row.source_repo} {row.source_path}\n{row.notes or ''}\n")
    print(f"leaves open: {gap_of(row) or 'nothing'}")
    print(f"estimate({case.model!r}, {', '.join(f'{k}={v!r}' for k, v in case.fields.items())})")
    for assumption in case.assumptions:
        print(f"assumed: {assumption}")
    for name in versions_for(case, versions):
        answer = ask(case, name)
        score = replay(row, case, name)
        print(f"\n{name}: {', '.join(f'{k} {v}' for k, v in answer.versions.items())}")
        cells = [
            (term.name, f"{term.num_bytes:,}", f"{term.num_bytes / GIB:.3f}", term.formula)
            for term in answer.memory.terms
        ]
        print(report.table(("term", "bytes", "GiB", "formula"), cells))
        print(f"peak at {answer.memory.peak_phase}")
        print(report.every_row([score]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

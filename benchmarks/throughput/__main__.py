"""``python -m benchmarks.throughput``: published throughputs beside predicted step times."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.throughput import report
from benchmarks.throughput.fit import fit, fitting_cases
from benchmarks.throughput.scores import all_scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 unless an argument is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit the constants again and print them")
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--write", action="store_true", help="renew docs/throughput.md")
    options = parser.parse_args(arguments)
    if options.fit:
        print(report.constants_table(fit(fitting_cases())))
        return 0
    if options.write:
        report.DOCUMENT.write_text(report.document(fit(fitting_cases())), encoding="utf-8")
        print(f"Wrote {report.DOCUMENT}.")
        return 0
    scores = all_scores()
    print(report.error_table(scores))
    print(f"\n{report.ranking_text(scores)}\n")
    print(report.row_table(scores, above=-1.0 if options.rows else report.LISTED_FROM))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

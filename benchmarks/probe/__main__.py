"""``python -m benchmarks.probe``: trials until the largest micro-batch is known, by finder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.probe import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 when the page cannot be written for want of a package."""
    parser = argparse.ArgumentParser(prog=report.COMMAND, description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew docs/probe-trials.md")
    options = parser.parse_args(arguments)
    missing = ", ".join(report.missing())
    if missing:
        print(f"Not installed, so left out: {missing}.", file=sys.stderr)
    if options.write:
        if missing:
            return 2
        report.DOCUMENT.write_text(report.document(), encoding="utf-8")
        print(f"Wrote {report.DOCUMENT}.")
        return 0
    print(f"{report.trials_table()}\n\n{report.answers_table()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

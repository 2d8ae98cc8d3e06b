"""``python -m benchmarks.gpu_check``: train a fixed grid on this machine's GPU and compare.

One command, no network, under ten minutes: cases that the budget has no time for are left out, and
what is larger than the device is not run. Writes every case with what was predicted and measured as
JSON, and prints the accuracy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from batchplan.errors import BatchplanError, ProbeError
from benchmarks.gpu_check.grid import Case, grid, tiny_grid
from benchmarks.gpu_check.measure import REFUSED, Measured, measure
from benchmarks.gpu_check.report import document, page, to_json

_MARGIN = 1.5
"""Times the longest case so far that must be left before another one is begun."""


def main(arguments: list[str] | None = None) -> int:
    """Run the check; the exit code is that of ``batchplan probe``."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="batchplan-gpu-check-") as folder:
        cases = list(tiny_grid(Path(folder)) if options.tiny else grid())
        began = time.monotonic()
        try:
            found = _run(cases, options, began + options.budget)
        except ProbeError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    seconds = time.monotonic() - began
    left_out = len(cases) - len(found)
    options.output.write_text(
        to_json(document(found, seconds=seconds, left_out=left_out)), encoding="utf-8"
    )
    print(page(found, seconds=seconds, left_out=left_out))
    print(f"\nWritten to {options.output}.")
    return 0


def _run(cases: Iterable[Case], options: argparse.Namespace, ends: float) -> list[Measured]:
    found: list[Measured] = []
    longest = 0.0
    for case in cases:
        began = time.monotonic()
        if found and began + _MARGIN * longest > ends:
            break
        try:
            one = measure(
                case,
                device=options.device,
                memory_limit=options.memory_limit,
                timeout=max(1.0, ends - began),
            )
        except ProbeError:
            raise
        except BatchplanError as error:
            one = Measured(case=case, micro_batch=0, outcome=REFUSED, text=str(error))
        print(f"{case.name}: {one.outcome}", file=sys.stderr)
        found.append(one)
        longest = max(longest, time.monotonic() - began)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", default="auto", help="as batchplan probe; default: auto")
    parser.add_argument(
        "--memory-limit", default=None, metavar="SIZE", help="default: what is free"
    )
    parser.add_argument(
        "--budget", type=float, default=570.0, metavar="SECONDS", help="default: 570"
    )
    parser.add_argument("--tiny", action="store_true", help="a miniature of the grid, for a CPU")
    parser.add_argument(
        *("-o", "--output"), type=Path, default=Path("gpu_check.json"), metavar="FILE"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""``python -m batchplan`` and the ``batchplan`` command."""

from __future__ import annotations

import gc
import sys

INTERRUPTED = 130
GC_THRESHOLD = 1_000_000
"""New objects between two collections. An answer makes fewer, keeps nearly all and soon ends:
Python's 700 would spend a tenth of its time looking for cycles."""


def main() -> None:
    """Run the command line; Ctrl-C while it is still loading is one line as well."""
    gc.set_threshold(GC_THRESHOLD)
    try:
        from batchplan.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

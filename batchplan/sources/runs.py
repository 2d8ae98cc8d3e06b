"""Published training runs, read from the catalog."""

from __future__ import annotations

import csv
from functools import cache

from batchplan.errors import BatchplanError
from batchplan.learning.runs import PublishedRun
from batchplan.sources.profiles_dir import profile_file


@cache
def load_runs() -> tuple[PublishedRun, ...]:
    """Return every published run of the catalog, in its order.

    Raises:
        BatchplanError: when the file is missing or broken.
    """
    path = profile_file("runs", "runs.csv")
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return tuple(_run(fields) for fields in csv.DictReader(file))
        except (KeyError, TypeError, ValueError) as error:
            raise BatchplanError(f"{path} is broken: {error!r}") from error


def _run(fields: dict[str, str]) -> PublishedRun:
    end, seq_len, peak_lr = (
        fields[key] for key in ("global_batch_tokens_end", "seq_len", "peak_lr")
    )
    return PublishedRun(
        run=fields["run"],
        num_params=int(fields["num_params"]),
        global_batch_tokens=int(fields["global_batch_tokens"]),
        global_batch_tokens_end=int(end) if end else None,
        seq_len=int(seq_len) if seq_len else None,
        peak_lr=float(peak_lr) if peak_lr else None,
        optimizer=fields["optimizer"],
        source=fields["source"],
        note=fields["note"],
    )

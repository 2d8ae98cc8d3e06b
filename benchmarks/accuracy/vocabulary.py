"""Words that rows of every source share, as values of ``estimate``'s keyword arguments."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.case import NotScoredError
from benchmarks.accuracy.rows import Row


def sizes(row: Row) -> dict[str, Any]:
    """Return devices, micro-batch, accumulation and sequence length of a data-parallel row.

    Raises:
        NotScoredError: when the row splits the model, or does not print a size.
    """
    if (row.tp or 1) > 1 or (row.pp or 1) > 1:
        raise NotScoredError("tensor or pipeline parallelism")
    for name in ("n_gpus", "micro_batch", "seq_len"):
        if getattr(row, name) is None:
            raise NotScoredError(f"{name} is not printed")
    return {
        "devices": row.n_gpus,
        "micro_batch": row.micro_batch,
        "accum_steps": row.grad_accum or 1,
        "seq_len": row.seq_len,
    }


def pick(table: dict[str, Any], value: str | None, what: str) -> Any:
    """Return a table's entry, or say which word it does not have.

    Raises:
        NotScoredError: when the table has no such word.
    """
    if value not in table:
        raise NotScoredError(f"{what} {value} cannot be expressed")
    return table[value]

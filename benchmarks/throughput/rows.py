"""Measured throughputs: one frozen record each, as ``profiles/measured/throughput.csv`` holds.

Which half a row belongs to is decided by the hash of what identifies it, so that nobody picks.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

THROUGHPUT_FILE = Path(__file__).parents[2] / "profiles" / "measured" / "throughput.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published throughput and the configuration it was taken on."""

    source: str
    gpu: str
    model: str
    params: int | None
    """As published, position embeddings included; None where the source does not say."""
    method: str
    seq_len: int | None
    """None where lengths vary and only their data set is known."""
    num_ranks: int
    micro_batch: int
    accum_steps: int | None
    checkpointing: str | None
    sharding: str
    tokens_per_second: float | None
    """Per GPU."""
    micro_batch_ms: float | None
    """Where the source prints the time of a micro-batch instead."""
    mfu_percent: float | None
    """As published, in the source's own FLOP convention: 6 N + 12 L d s with all of N."""

    @property
    def id(self) -> str:
        """Everything that tells the row from the others, in words."""
        lengths = "" if self.seq_len is None else f" s {self.seq_len}"
        steps = "" if self.accum_steps is None else f" × {self.accum_steps}"
        return (
            f"{self.model} {self.method} on {self.num_ranks} {self.gpu}{lengths}, "
            f"{self.micro_batch}{steps}"
        )

    @property
    def is_held_out(self) -> bool:
        """Whether the constants were fitted without it: one row in two, by hash."""
        return hashlib.sha256(self.id.encode()).digest()[0] % 2 == 0


@cache
def load_rows() -> tuple[Row, ...]:
    """Return every row of the file, in its order."""
    with THROUGHPUT_FILE.open(encoding="utf-8", newline="") as lines:
        return tuple(_row(cells) for cells in csv.DictReader(lines))


def _row(cells: dict[str, str]) -> Row:
    def whole(name: str) -> int | None:
        return int(cells[name]) if cells[name] else None

    def number(name: str) -> float | None:
        return float(cells[name]) if cells[name] else None

    return Row(
        source=cells["source"],
        gpu=cells["gpu"],
        model=cells["model"],
        params=whole("params"),
        method=cells["method"],
        seq_len=whole("seq_len"),
        num_ranks=int(cells["num_ranks"]),
        micro_batch=int(cells["micro_batch"]),
        accum_steps=whole("accum_steps"),
        checkpointing=cells["checkpointing"] or None,
        sharding=cells["sharding"],
        tokens_per_second=number("tokens_per_second_per_gpu"),
        micro_batch_ms=number("micro_batch_ms"),
        mfu_percent=number("mfu_percent"),
    )

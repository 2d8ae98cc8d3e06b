"""Measured rows: published peaks of memory, one frozen record each, as ``profiles/measured`` holds.

Which rows are held out is decided by the hash of the row's id, so that nobody picks them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

MEASURED_DIR = Path(__file__).parents[2] / "profiles" / "measured"

_HELD_OUT_ONE_IN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published measurement and the configuration it was taken on."""

    id: str
    source_group: str
    """Rows of one group come from one project; averages weigh groups equally."""
    source: str
    source_repo: str
    source_path: str
    source_commit: str | None = None
    grade: str
    """A: fully replayable. B: one minor assumption. C: a major one."""
    core: bool
    """Dense text transformer, full, LoRA or QLoRA, one GPU or data parallel, usual kernels."""
    scope: str
    """``train_step``, or ``component`` for a figure that is no peak of a training step."""
    model: str | None = None
    arch: Mapping[str, Any] | None = None
    params: int | None = None
    gpu: str | None = None
    n_gpus: int | None = None
    method: str | None = None
    method_detail: str | None = None
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ()
    quant: str | None = None
    optimizer: str | None = None
    optim_state_dtype: str | None = None
    weight_dtype: str | None = None
    grad_dtype: str | None = None
    precision_mode: str | None = None
    sharding: str | None = None
    sharding_detail: str | None = None
    tp: int | None = 1
    pp: int | None = 1
    dp: int | None = None
    offload: str = "none"
    act_ckpt: str | None = None
    attn: str | None = None
    fused_ce: str | None = None
    compile: str | bool = False
    micro_batch: int | None = None
    """Sequences per GPU in one forward."""
    grad_accum: int | None = None
    seq_len: int | None = None
    lengths: str | None = None
    """Whether every sequence has ``seq_len`` tokens."""
    metric: str
    value_bytes: int | None = None
    value_bytes_range: tuple[int, int] | None = None
    """Both readings of a figure whose unit (10**9 or 2**30) is not known."""
    outcome: str | None = None
    framework: str | None = None
    version: str | None = None
    notes: str | None = None

    @property
    def is_held_out(self) -> bool:
        """Whether the row is kept back from development."""
        return held_out(self.id)

    @property
    def is_counted(self) -> bool:
        """Whether the row enters the averages: core, and graded A or B."""
        return self.core and self.grade in ("A", "B")

    @property
    def measured(self) -> tuple[int, int] | None:
        """Both ends of what was measured; equal where the unit is known, None without a value."""
        if self.value_bytes is not None:
            return self.value_bytes, self.value_bytes
        return self.value_bytes_range


def held_out(row_id: str) -> bool:
    """Return whether a row is held out, by the hash of its id (about one in five).

    >>> [held_out(name) for name in ("a", "b", "c", "d", "e", "f", "g")]
    [True, False, True, False, False, False, False]
    """
    digest = hashlib.sha256(row_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT_ONE_IN == 0


@cache
def load_rows() -> tuple[Row, ...]:
    """Return every row, by file name and then in the file's order.

    Raises:
        ValueError: when a line is no row; the message names the file and the line.
    """
    rows = []
    for path in sorted(MEASURED_DIR.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        rows += [_row(line, f"{path.name}:{number}") for number, line in enumerate(lines, 1)]
    return tuple(rows)


def _row(line: str, place: str) -> Row:
    data = json.loads(line)
    unknown = data.keys() - {field.name for field in fields(Row)}
    if unknown:
        raise ValueError(f"{place}: unknown {', '.join(sorted(unknown))}")
    for name in ("lora_targets", "value_bytes_range"):
        if name in data:
            data[name] = tuple(data[name])
    try:
        return Row(**data)
    except TypeError as error:
        raise ValueError(f"{place}: {error}") from error

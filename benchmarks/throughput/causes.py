"""Why rows are off by more than a tenth, as far as their configuration tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.throughput.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One reason and the rows it speaks of."""

    applies: Callable[[Row], bool]
    text: str


def _full_device(row: Row) -> bool:
    """Whether weights, gradients and AdamW's moments, in fp32 shards, fill 60 % of the device."""
    gigabytes = 40 if "40GB" in row.gpu else 80
    return (row.params or 0) * 16 / row.num_ranks / 1e9 > 0.6 * gigabytes


CAUSES = (
    Cause(
        applies=_full_device,
        text="states alone fill most of the device: the allocator frees and asks again, and every "
        "micro-batch waits for it (likely; batchplan does not model it)",
    ),
    Cause(
        applies=lambda row: row.source == "litgpt",
        text="near the launch floor: one floor a layer for all models, and real time grows a "
        "little with the micro-batch before the floor is left",
    ),
    Cause(
        applies=lambda row: "760m" in row.model,
        text="slower per token than the same model at other lengths or on more devices, against "
        "the trend of its neighbours: noise of the source, or a cause its table does not show",
    ),
    Cause(
        applies=lambda row: row.num_ranks > 8 and row.accum_steps == 1,
        text="one step without accumulation over a network whose rate the source does not print; "
        "the same model on more devices is near",
    ),
)


def cause_of(row: Row) -> str:
    """Return the first cause that applies, or that none is known."""
    return next((cause.text for cause in CAUSES if cause.applies(row)), "not known")

"""Which rows state their whole recipe, and what the others leave open.

A row is fully stated when everything that its memory depends on is in the row, in the source's own
code at that commit, or in a library's default: model code that can be traced, sizes, dtypes, what
is sharded and kept, and which figure was read. Whether the answer is near plays no part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.accuracy.rows import Row


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that the rows of a source leave open."""

    reason: str
    applies: Callable[[Row], bool] | None = None
    """Which rows; None for every one."""


_COMPILED = Gap(
    "compiled: what torch.compile keeps is not in the row", lambda row: bool(row.compile)
)

_GAPS: dict[str, tuple[Gap, ...]] = {
    "axolotl-examples": (Gap("an approximate figure, and which one is not said"),),
    "galvatron": (
        Gap("layers and loss of Megatron and flash-attn, wrapped module by module in FSDP units"),
    ),
    "hf-blog-4bit": (Gap("the script is not kept: neither rank nor targets nor optimizer"),),
    "lightning-docs": (
        Gap(
            "the Fabric page prints other figures than the Trainer page for what both state alike",
            lambda row: "fabric" in row.source_path,
        ),
    ),
    "lightning-thunder": (_COMPILED,),
    "litgpt": (
        _COMPILED,
        Gap(
            "the longest sample is not printed, only what it is cut to",
            lambda row: "upper bound" in (row.notes or ""),
        ),
    ),
    "llmq-llamafactory": (Gap("which of Liger's kernels replace the layers is not printed"),),
    "ms-swift": (
        Gap(
            "lengths vary: reserved memory depends on the order of a data set's lengths",
            lambda row: (row.lengths or "").startswith("dynamic"),
        ),
        Gap("which figure was read is presumed", lambda row: row.metric.endswith("(presumed)")),
        Gap("lengths are not said", lambda row: row.lengths is None),
    ),
    "nemo-automodel": (
        Gap("its rows may be cumulative, its kernels are not named, and figures are +-5 %"),
    ),
    "rasbt": (_COMPILED,),
    "torchao-optim": (Gap("lengths are not printed"),),
}


def _applies(gap: Gap, row: Row) -> bool:
    return gap.applies is None or gap.applies(row)


def gap_of(row: Row) -> str:
    """Return what a row leaves open; empty when its recipe is fully stated."""
    found = [gap.reason for gap in _GAPS.get(row.source_group, ()) if _applies(gap, row)]
    if row.grade == "C":
        found.append("a major assumption (grade C)")
    return "; ".join(found)

"""``batchplan trace``."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Annotated, Any

import typer

from batchplan.api.fields import NOT_HERE
from batchplan.cli.estimate import DOES_NOT_FIT
from batchplan.cli.options import BATCH, JSON_ONLY, RECIPE, SUBJECT, option, takes, without, worded

_TRAINERS_OWN = dict.fromkeys(
    ("micro_batch", "accum_steps", "numerics", "sharding", "checkpointing", "sync_each_batch"),
    "what --trainer does",
)
_TRACE = {
    "snapshot": option(
        Path,
        "Write a memory snapshot for https://pytorch.org/memory_viz to FILE. Default: none.",
        metavar="FILE",
    ),
    "top": option(int, "Largest allocations at the peak to show. Default: 8.", metavar="N"),
}


@takes(
    without(SUBJECT, *NOT_HERE),
    worded(BATCH, **_TRAINERS_OWN),
    worded(RECIPE, **_TRAINERS_OWN),
    _TRACE,
    JSON_ONLY,
)
def trace(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id (Qwen/Qwen2.5-7B), local folder or config.json, or a catalog name.",
            show_default=False,
            metavar="MODEL",
        ),
    ],
    **options: Any,
) -> int:
    """Run whole optimizer steps on fake tensors, and show who holds memory at the peak.

    Example: batchplan trace Qwen/Qwen2.5-7B --gpu a100-80gb --micro-batch 2 --seq-len 2048
    """
    from batchplan.api import trace
    from batchplan.cli.output import Progress, deliver, refuse_unwritable, warn

    as_json, quiet = options.pop("json"), options.pop("quiet")
    snapshot = options.pop("snapshot")
    refuse_unwritable(snapshot)
    given = {name: value for name, value in options.items() if value is not None}
    with Progress(quiet=quiet) as progress:
        answer = trace(model, on_progress=progress, **given)
    document = answer.to_dict()
    warn(document["caveats"], quiet=quiet)
    if snapshot is not None:
        answer.write_snapshot(snapshot)

    def show(file: IO[str]) -> None:
        from batchplan.render.trace import print_trace

        print_trace(document, file=file)

    return deliver(document, as_json=as_json, show=show, code=0 if answer.fits else DOES_NOT_FIT)

"""``batchplan estimate``."""

from __future__ import annotations

from typing import IO, Any

from batchplan.cli.options import BATCH, DATA, MODEL, OUTPUT, RECIPE, SUBJECT, option, takes, worded

DOES_NOT_FIT = 3
_DEVICES = {"devices": option(str, "Devices over all nodes. Default: 1.", metavar="N")}
_TRAINERS_OWN = dict.fromkeys(
    ("micro_batch", "accum_steps", "numerics", "sharding", "checkpointing", "sync_each_batch"),
    "what --trainer does",
)


@takes(
    _DEVICES,
    SUBJECT,
    DATA,
    worded(BATCH, **_TRAINERS_OWN),
    worded(RECIPE, **_TRAINERS_OWN),
    worded(OUTPUT, written="the JSON document"),
)
def estimate(model: MODEL = None, **options: Any) -> int:
    """Show the peak memory of one exact configuration, term by term, and whether it fits.

    Example: batchplan estimate Qwen/Qwen2.5-7B --gpu a100-80gb --micro-batch 2 --seq-len 2048
    """
    from batchplan.api import estimate as answer_estimate
    from batchplan.cli.output import Progress, deliver, refuse_unwritable, warn, write_files

    as_json, quiet = options.pop("json"), options.pop("quiet")
    output, explain = options.pop("output"), options.pop("explain")
    verbose = options.pop("verbose")
    refuse_unwritable(output)
    given = {name: value for name, value in options.items() if value is not None}
    with Progress(quiet=quiet) as progress:
        answer = answer_estimate(model, on_progress=progress, **given)
    document = answer.to_dict()
    warn(document["caveats"], quiet=quiet)
    if output is not None:
        from batchplan.render.json import to_json

        write_files([(output, to_json(document))])

    def show(file: IO[str]) -> None:
        from batchplan.render.estimate import print_estimate

        print_estimate(document, file=file, explain=explain, verbose=verbose)

    return deliver(document, as_json=as_json, show=show, code=0 if answer.fits else DOES_NOT_FIT)

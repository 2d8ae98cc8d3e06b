"""``batchplan probe``."""

from __future__ import annotations

import sys
from typing import IO, Annotated, Any

import typer

from batchplan.api.fields import NOT_HERE
from batchplan.cli.estimate import DOES_NOT_FIT
from batchplan.cli.options import JSON_ONLY, PROBE, RECIPE, SUBJECT, takes, without, worded

PROBE_FAILED = 4
_TRAINERS_OWN = dict.fromkeys(
    ("numerics", "sharding", "checkpointing", "sync_each_batch"), "what --trainer does"
)


@takes(
    PROBE,
    without(SUBJECT, "gpu", *NOT_HERE),
    worded(RECIPE, **_TRAINERS_OWN),
    JSON_ONLY,
)
def probe(
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
    """Find the largest micro-batch that really fits, by training with it for two steps.

    Example: batchplan probe Qwen/Qwen2.5-0.5B --seq-len 2048 --checkpointing full
    """
    from batchplan.api import probe
    from batchplan.cli.output import Progress, deliver, warn

    as_json, quiet = options.pop("json"), options.pop("quiet")
    given = {name: value for name, value in options.items() if value is not None}
    with Progress(quiet=quiet) as progress:
        answer = probe(model, on_progress=progress, **given)
    document = answer.to_dict()
    warn(document["caveats"], quiet=quiet)
    if answer.failed:
        print(f"error: {answer.failed}", file=sys.stderr)

    def show(file: IO[str]) -> None:
        from batchplan.render.probe import print_probe

        print_probe(document, file=file)

    code = PROBE_FAILED if answer.failed else 0 if answer.fits else DOES_NOT_FIT
    return deliver(document, as_json=as_json, show=show, code=code)

"""``batchplan noise``."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Annotated, Any

import typer

from batchplan.api.fields import NO_GRADIENTS, NOT_HERE
from batchplan.cli.options import (
    COLUMNS,
    JSON_ONLY,
    RECIPE,
    SUBJECT,
    option,
    takes,
    without,
    worded,
)

_TRAINERS_OWN = dict.fromkeys(("numerics", "checkpointing"), "what --trainer does")
_MEASURING = {
    "device": option(
        str, "cpu, cuda, or auto: a free GPU, or else the CPU. Default: auto.", metavar="NAME"
    ),
    "devices": option(str, "Devices of this machine that share the work. Default: 1.", metavar="N"),
    "micro_batch": option(str, "Sequences of one gradient. Default: 1.", metavar="N"),
    "window": option(
        str, "Micro-batches of a window, over all devices; 2 or more. Default: 8.", metavar="N"
    ),
    "precision": option(
        str,
        "Half the interval over the estimate at which to stop. Default: 30%.",
        metavar="PERCENT",
    ),
    "max_seconds": option(
        str, "Seconds to measure for, loading left out. Default: 600.", metavar="SECONDS"
    ),
    "max_tokens": option(
        str, "Tokens to read, padding left out. Default: no bound.", metavar="TOKENS"
    ),
    "target_tokens": option(
        str, "Tokens of an optimizer step, to weigh. Default: none.", metavar="TOKENS"
    ),
    "weights": option(
        bool, "Load the published weights. Default: random ones, freshly drawn.", "--weights"
    ),
    "seed": option(
        str,
        "Decides the rows and their order, random weights and dropout. Default: 0.",
        metavar="N",
    ),
    "tokenizer": option(
        str, "Hub id or folder that tokenizes text. Default: MODEL's.", metavar="NAME"
    ),
    "text_column": COLUMNS["text_column"],
    "save": option(bool, "Keep the result in the user's data folder. Default: no.", "--save"),
    "output": option(
        Path,
        "Write the result to FILE, for --noise of recommend and lr.",
        "-o",
        "--output",
        metavar="FILE",
    ),
}


@takes(
    _MEASURING,
    without(SUBJECT, "gpu", *NOT_HERE),
    worded(without(RECIPE, *NO_GRADIENTS), **_TRAINERS_OWN, sharding="ddp"),
    JSON_ONLY,
)
def noise(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id (Qwen/Qwen2.5-7B), local folder or config.json, or a catalog name.",
            show_default=False,
            metavar="MODEL",
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            help="Rows to train on: token ids (input_ids, labels), or text.",
            show_default=False,
            metavar="DATA",
        ),
    ],
    **options: Any,
) -> int:
    """Measure the gradient noise scale, and what it says of a target batch.

    Example: batchplan noise Qwen/Qwen2.5-0.5B data.jsonl --weights --target-tokens 0.5M
    """
    from batchplan.api import noise as answer_noise
    from batchplan.cli.output import (
        Progress,
        deliver,
        refuse_unwritable,
        warn,
        write_files,
    )

    as_json, quiet = options.pop("json"), options.pop("quiet")
    output = options.pop("output")
    refuse_unwritable(output)
    given = {name: value for name, value in options.items() if value is not None}
    with Progress(quiet=quiet) as progress:
        answer = answer_noise(model, data, on_progress=progress, **given)
    document = answer.to_dict()
    warn(document["caveats"], quiet=quiet)
    if output is not None:
        write_files([(output, answer.file_text())])

    def show(file: IO[str]) -> None:
        from batchplan.render.noise import print_noise

        print_noise(document, file=file)

    return deliver(document, as_json=as_json, show=show, code=0)

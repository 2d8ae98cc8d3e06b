"""``batchplan verify``."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Annotated, Any

import typer

from batchplan.cli.options import COLUMNS, JSON_ONLY, RECIPE, SUBJECT, option, takes

FOUND = 6
_SHARED = ("seq_len", "python", "revision", "trust_remote_code", "offline")
_RECIPE = ("method", "lora_rank", "lora_targets")
_CHECKING = {
    "device": option(
        str, "cpu, cuda, or auto: a free GPU, or else the CPU. Default: auto.", metavar="NAME"
    ),
    "accum_steps": option(
        str, "Micro-batches of a window (K), 3 or more. Default: 4.", metavar="N"
    ),
    "micro_batch": option(str, "Sequences of a micro-batch. Default: 2.", metavar="N"),
    "full": option(
        bool, "Keep every layer at its width. Default: two narrow ones of every kind.", "--full"
    ),
    "memory": option(
        bool, "Also compare one batch of 8 with 8 of 1, in memory. Default: no.", "--memory"
    ),
    "max_seconds": option(
        str, "Seconds after which no further loop starts. Default: 300.", metavar="SECONDS"
    ),
    "seed": option(str, "Decides weights, tokens and rows. Default: 0.", metavar="N"),
    "tokenizer": option(
        str, "Hub id or folder that tokenizes text. Default: MODEL's.", metavar="NAME"
    ),
    "text_column": COLUMNS["text_column"],
}


@takes(
    _CHECKING,
    {name: SUBJECT[name] for name in _SHARED},
    {name: RECIPE[name] for name in _RECIPE},
    JSON_ONLY,
)
def verify(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id (Qwen/Qwen2.5-7B), local folder or config.json, or a catalog name.",
            show_default=False,
            metavar="MODEL",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Rows to train on: token ids (input_ids, labels), or text. Default: drawn tokens.",
            show_default=False,
            metavar="[DATA]",
        ),
    ] = None,
    **options: Any,
) -> int:
    """Check that accumulation equals the large batch, for a model's class and its loss.

    Example: batchplan verify mistralai/Mixtral-8x7B-v0.1
    """
    from batchplan.api import verify as answer_verify
    from batchplan.cli.output import Progress, deliver

    as_json, quiet = options.pop("json"), options.pop("quiet")
    given = {name: value for name, value in options.items() if value is not None}
    with Progress(quiet=quiet) as progress:
        answer = answer_verify(model, data, on_progress=progress, **given)
    document = answer.to_dict()

    def show(file: IO[str]) -> None:
        from batchplan.render.verify import print_verify

        print_verify(document, file=file)

    return deliver(document, as_json=as_json, show=show, code=0 if answer.ok else FOUND)

"""``batchplan lengths``."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Annotated, Any

import typer

from batchplan.cli.options import COLUMNS, JSON_ONLY, SUBJECT, option, takes

_OPTIONS = {
    "seq_len": option(
        str, "A sequence length to show beside the powers of two. Default: none.", metavar="TOKENS"
    ),
    "micro_batch": option(str, "Sequences padded together. Default: 8.", metavar="N"),
    "tokenizer": option(
        str, "Hub id or folder that counts the text. Default: FILE has lengths.", metavar="NAME"
    ),
    **COLUMNS,
    **{name: SUBJECT[name] for name in ("trust_remote_code", "offline")},
}


@takes(_OPTIONS, JSON_ONLY)
def lengths(
    file: Annotated[
        Path,
        typer.Argument(
            help="Token counts (one a line, JSON list, column), or a data set with --tokenizer.",
            show_default=False,
            metavar="FILE",
        ),
    ],
    **options: Any,
) -> int:
    """Show how long a data set's sequences are, and what padding and packing would waste.

    Example: batchplan lengths data.jsonl --tokenizer Qwen/Qwen2.5-7B --micro-batch 4
    """
    from batchplan.api import lengths as answer_lengths
    from batchplan.cli.output import Progress, deliver

    as_json, quiet = options.pop("json"), options.pop("quiet")
    given = {name: value for name, value in options.items() if value is not None}
    with Progress(quiet=quiet) as progress:
        answer = answer_lengths(file, on_progress=progress, **given)
    document = answer.to_dict()

    def show(file: IO[str]) -> None:
        from batchplan.render.lengths import print_lengths

        print_lengths(document, file=file)

    return deliver(document, as_json=as_json, show=show, code=0)

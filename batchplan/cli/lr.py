"""``batchplan lr``."""

from __future__ import annotations

from typing import IO, Annotated, Any

import typer

from batchplan import spec
from batchplan.cli.options import JSON_ONLY, option, takes

_OPTIONS = {
    "optimizer": option(spec.Optimizer, "Decides the rule. Default: adamw."),
    "method": option(spec.Method, "Which parameters train. Default: full."),
    "seq_len": option(
        str, "Tokens per sequence; needed to compare sequences with tokens.", metavar="TOKENS"
    ),
}


@takes(_OPTIONS, JSON_ONLY)
def lr(
    rate: Annotated[
        str, typer.Option("--lr", help="Learning rate used before. Required.", metavar="RATE")
    ],
    before: Annotated[
        str,
        typer.Option(
            "--from",
            help="Global batch before: sequences, or tokens with a suffix (0.5M). Required.",
            metavar="BATCH",
        ),
    ],
    after: Annotated[
        str,
        typer.Option("--to", help="Global batch after, likewise. Required.", metavar="BATCH"),
    ],
    **options: Any,
) -> int:
    """Give the learning rate for a changed batch, with the rule and where it holds.

    Example: batchplan lr --lr 2e-4 --from 32 --to 256 --optimizer adamw
    """
    from batchplan.api import learning_rate
    from batchplan.cli.output import deliver

    answer = learning_rate(
        lr=rate,
        from_batch=before,
        to_batch=after,
        optimizer=options["optimizer"] or spec.Optimizer.ADAMW,
        method=options["method"] or spec.Method.FULL,
        seq_len=options["seq_len"],
    )
    document = answer.to_dict()

    def show(file: IO[str]) -> None:
        from batchplan.render.catalog import print_learning_rate

        print_learning_rate(document, file=file)

    return deliver(document, as_json=options["json"], show=show, code=0)

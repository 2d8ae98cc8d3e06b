"""``batchplan lr``."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from batchplan import spec
from batchplan.cli.options import JSON_ONLY, option, takes

_BATCH = {
    "lr": option(str, "Learning rate used before.", metavar="RATE"),
    "from_batch": option(
        str,
        "Global batch before: sequences, or tokens with a suffix (0.5M).",
        "--from",
        metavar="BATCH",
    ),
    "to_batch": option(str, "Global batch after, likewise.", "--to", metavar="BATCH"),
    "optimizer": option(spec.Optimizer, "Decides the rule. Default: adamw."),
    "method": option(spec.Method, "Which parameters train. Default: full."),
    "seq_len": option(
        str, "Tokens per sequence; needed to compare sequences with tokens.", metavar="TOKENS"
    ),
    "beta2": option(str, "Adam's beta2 before. Default: 0.999.", metavar="P"),
    "weight_decay": option(
        str, "AdamW's weight decay before, to keep its time scale. Default: none.", metavar="RATE"
    ),
    "noise_scale": option(
        str, "Measured gradient noise scale, as a batch. Default: none.", metavar="BATCH"
    ),
    "noise": option(
        Path, "File of `batchplan noise -o`, in place of --noise-scale.", metavar="FILE"
    ),
}
_TRAINING = {
    "params": option(
        str, "Parameters of the model, for published batches and runs.", metavar="COUNT"
    ),
    "data_tokens": option(
        str, "Tokens of your data: steps of an epoch, published batches.", metavar="TOKENS"
    ),
    "loss": option(
        str, "Loss in nats per token, for Kaplan's critical batch. Default: none.", metavar="LOSS"
    ),
    "explain": option(bool, "Show every rule's value, where it holds and its source.", "--explain"),
}


@takes(_BATCH, _TRAINING, JSON_ONLY)
def lr(**options: Any) -> int:
    """Give the learning rate for a changed batch, with the rule and where it holds.

    Needs --lr, --from and --to; or --data-tokens for published batches alone.

    Example: batchplan lr --lr 2e-4 --from 32 --to 256 --optimizer adamw
    """
    from batchplan.api import learning_rate
    from batchplan.cli.output import deliver

    as_json, explain = options.pop("json"), options.pop("explain")
    options.pop("quiet")
    given = {name: value for name, value in options.items() if value is not None}
    document = learning_rate(**given).to_dict()

    def show(file: IO[str]) -> None:
        from batchplan.render.learning import print_learning_rate

        print_learning_rate(document, file=file, explain=explain)

    return deliver(document, as_json=as_json, show=show, code=0)

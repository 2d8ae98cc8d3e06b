"""``batchplan recommend``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from batchplan.cli.options import BATCH, MODEL, OUTPUT, RECIPE, SUBJECT, option, takes, worded

if TYPE_CHECKING:
    from batchplan.api import RecommendAnswer

NOTHING_FITS = 3
_GOAL = {
    "target_tokens": option(
        str, "Tokens per optimizer step (4M, 500k). Default: no target.", metavar="TOKENS"
    ),
    "target_sequences": option(
        str, "Sequences per optimizer step, in place of tokens. Default: no target.", metavar="N"
    ),
    "tolerance": option(
        str, "Largest accepted deviation from the target. Default: 2%.", metavar="PERCENT"
    ),
    "devices": option(
        str,
        "Devices over all nodes: N, a range 1..8, or auto for the fewest that fit. Default: 1.",
        metavar="N|LO..HI|auto",
    ),
    "epoch_tokens": option(
        str, "Tokens of your data set, to show one epoch's time. Default: none.", metavar="TOKENS"
    ),
    "lr": option(str, "A learning rate you know to work. Default: none.", metavar="RATE"),
    "lr_batch": option(
        str,
        "Global batch --lr works at: sequences, or tokens with a suffix. Default: this plan's.",
        metavar="BATCH",
    ),
    "limit": option(int, "Plans to show. Default: 5.", metavar="N"),
}
_SEARCHED = {
    "micro_batch": "searched",
    "accum_steps": "searched",
    "numerics": "bf16-master (full) or bf16 (lora, qlora)",
    "sharding": "searched",
    "checkpointing": "searched",
    "sync_each_batch": "yes",
}


@takes(
    _GOAL,
    SUBJECT,
    worded(BATCH, **_SEARCHED),
    worded(RECIPE, **_SEARCHED),
    worded(OUTPUT, written="the trainer config of the best plan"),
)
def recommend(model: MODEL = None, **options: Any) -> int:
    """Find the batch configurations that reach a target and fit, fastest first.

    Example: batchplan recommend Qwen/Qwen2.5-7B --gpu a100-80gb --devices 8 --target-tokens 1M
    """
    from batchplan.api import recommend as answer_recommend
    from batchplan.cli.output import Progress, deliver, refuse_json, refuse_unwritable, warn

    as_json, quiet = options.pop("json"), options.pop("quiet")
    output, explain = options.pop("output"), options.pop("explain")
    verbose = options.pop("verbose")
    refuse_json(output)
    refuse_unwritable(output)
    given = {name: value for name, value in options.items() if value is not None}
    with Progress(quiet=quiet) as progress:
        answer = answer_recommend(model, on_progress=progress, **given)
    document = answer.to_dict()
    warn(document["caveats"], quiet=quiet)
    if output is not None:
        _write_config(answer, output, quiet=quiet)

    def show(file: IO[str]) -> None:
        from batchplan.render.recommend import print_recommendation

        print_recommendation(document, file=file, explain=explain, verbose=verbose)

    return deliver(document, as_json=as_json, show=show, code=0 if answer.fits else NOTHING_FITS)


def _write_config(answer: RecommendAnswer, output: Path, *, quiet: bool) -> None:
    """Write the best plan's config to ``output``, and what it names beside it."""
    from batchplan.cli.output import write_files

    if not answer.fits:
        if not quiet:
            print(f"warning: nothing fits, so {output} was not written", file=sys.stderr)
        return
    main, *others = answer.config(stem=output.stem)
    beside = [(output.parent / file.name, file.text) for file in others]
    write_files([*beside, (output, main.text)])

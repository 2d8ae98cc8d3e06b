"""``batchplan recommend``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from batchplan import spec
from batchplan.cli.options import BATCH, DATA, MODEL, OUTPUT, RECIPE, SUBJECT, option, takes, worded

if TYPE_CHECKING:
    from batchplan.api import RecommendAnswer

NOTHING_FITS = 3
ANY_GPU = "any"
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
        str,
        "Tokens of your data set, to show one epoch's time. Default: none.",
        "--dataset-tokens",
        "--epoch-tokens",
        metavar="TOKENS",
    ),
    "lr": option(str, "A learning rate you know to work. Default: none.", metavar="RATE"),
    "lr_batch": option(
        str,
        "Global batch --lr works at: sequences, or tokens with a suffix. Default: this plan's.",
        metavar="BATCH",
    ),
    "noise": option(
        Path,
        "File of `batchplan noise -o`: plans are weighed against it. Default: none.",
        metavar="FILE",
    ),
    "optimize": option(
        spec.Objective,
        "What is best among what fits. Default: throughput, or time with --deadline.",
    ),
    "deadline": option(str, "Hours that the whole run may take. Default: none.", metavar="HOURS"),
    "epochs": option(str, "Passes over the data set. Default: 1.", metavar="N"),
    "gpu_price": option(
        str,
        "Price of one device and hour, or a file of name,price lines. Default: none.",
        metavar="PRICE|FILE",
    ),
    "pareto": option(
        bool,
        "Also show what no other plan beats in time, memory and devices at once.",
        "--pareto",
    ),
    "rescues": option(
        bool,
        "Where it fits, also show what would make the best plan faster or smaller.",
        "--rescues",
    ),
    "limit": option(int, "Plans to show. Default: 5, or 10 with --gpu any.", metavar="N"),
    "probe": option(
        bool,
        "With --gpu local: train with the best plan, and leave out what does not hold.",
        "--probe",
    ),
}
_GPU = {
    "gpu": option(
        str,
        "GPU: a catalog name (a100-80gb), a memory size with unit (24GiB), local, or any to "
        "compare the catalog's. Required.",
        metavar="NAME|SIZE|any",
    )
}
_AXES = {
    "sharding": option(
        str,
        "How devices split the states: one, several joined by commas, or any. "
        "Default: all that the trainer can.",
        metavar="NAMES",
    ),
    "checkpointing": option(
        str,
        "Activation checkpointing: none, selective, full, several, or any. Default: none,full.",
        metavar="NAMES",
    ),
    "offload": option(
        str,
        "What lives in host memory: none, optimizer, params, several, or any. Default: none.",
        metavar="NAMES",
    ),
    "attention": option(
        str,
        "Attention: eager, sdpa, flash, several, or any that the GPU runs. Default: sdpa.",
        metavar="NAMES",
    ),
}
"""Axes of the search, which take several values here."""
_SEARCHED = {
    "micro_batch": "searched",
    "accum_steps": "searched",
    "numerics": "bf16-master (full) or bf16 (lora, qlora)",
    "sharding": "searched",
    "checkpointing": "searched",
    "sync_each_batch": "yes",
}


_FOLDER = {
    "output": option(
        Path,
        "Write the trainer's files for the best plan to a folder, or beside a named main file.",
        "-o",
        "--output",
        metavar="FOLDER|FILE",
    )
}


@takes(
    _GOAL,
    {**SUBJECT, **_GPU},
    DATA,
    worded(BATCH, **_SEARCHED),
    worded(RECIPE, **_SEARCHED) | _AXES,
    {**OUTPUT, **_FOLDER},
)
def recommend(model: MODEL = None, **options: Any) -> int:
    """Find the batch configurations that reach a target and fit, fastest first.

    Example: batchplan recommend Qwen/Qwen2.5-7B --gpu a100-80gb --devices 8 --target-tokens 1M
    """
    from batchplan.api import recommend as answer_recommend
    from batchplan.api.recommending import config_suffix
    from batchplan.cli.output import Progress, deliver, main_file, warn

    as_json, quiet = options.pop("json"), options.pop("quiet")
    output, explain = options.pop("output"), options.pop("explain")
    verbose = options.pop("verbose")
    if output is not None:
        output = main_file(output, config_suffix(options["trainer"]))
    probe = options.pop("probe")
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("gpu") == ANY_GPU and not probe:
        return _compare(model, given, output, as_json=as_json, quiet=quiet)
    with Progress(quiet=quiet) as progress:
        answer = answer_recommend(model, probe=probe, on_progress=progress, **given)
    document = answer.to_dict()
    warn(document["caveats"], quiet=quiet)
    if output is not None:
        _write_config(answer, output, quiet=quiet)

    def show(file: IO[str]) -> None:
        from batchplan.render.recommend import print_recommendation

        print_recommendation(document, file=file, explain=explain, verbose=verbose)

    return deliver(document, as_json=as_json, show=show, code=0 if answer.fits else NOTHING_FITS)


def _compare(
    model: str | None, given: dict[str, Any], output: Path | None, *, as_json: bool, quiet: bool
) -> int:
    """Answer ``--gpu any``."""
    from batchplan.api import compare
    from batchplan.cli.output import Progress, deliver, warn
    from batchplan.errors import SpecError

    if model is None:
        raise SpecError("--gpu any needs a MODEL: what it takes on each device is compared.")
    if output is not None:
        raise SpecError("--gpu any writes no config: leave out -o, or name one GPU.")
    with Progress(quiet=quiet) as progress:
        answer = compare(model, on_progress=progress, **given)
    document = answer.to_dict()
    warn(document["caveats"], quiet=quiet)

    def show(file: IO[str]) -> None:
        from batchplan.render.compare import print_comparison

        print_comparison(document, file=file)

    return deliver(document, as_json=as_json, show=show, code=0 if answer.fits else NOTHING_FITS)


def _write_config(answer: RecommendAnswer, output: Path, *, quiet: bool) -> None:
    """Write the best plan's config to ``output``, and what it names beside it."""
    from batchplan.cli.output import write_files

    if not answer.fits:
        if not quiet:
            print(f"warning: nothing fits, so {output} was not written", file=sys.stderr)
        return
    output.parent.mkdir(exist_ok=True)
    main, *others = answer.config(stem=output.stem)
    beside = [(output.parent / file.name, file.text) for file in others]
    write_files([*beside, (output, main.text)])

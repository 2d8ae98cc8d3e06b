"""Transformers ``Trainer``: a TrainingArguments YAML, and what a script needs beside it.

Key names are those that every release from 4.56 on accepts. Read it back with
``HfArgumentParser(TrainingArguments).parse_yaml_file``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import ZERO, TrainerFormat
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.keymap import written
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared import loop
from batchplan.trainers.shared import training_arguments as arguments
from batchplan.trainers.shared.combine import reading
from batchplan.trainers.shared.deepspeed_json import auto_config, is_deepspeed, to_json
from batchplan.trainers.shared.flags import flags_of
from batchplan.trainers.shared.launch import (
    launch_file,
    one_device,
    processes,
    read_launch,
)
from batchplan.trainers.shared.model_kwargs import model_file, read_model
from batchplan.trainers.shared.needs import BESIDE_TRANSFORMERS, FSDP_ARGUMENTS, LOADS_BY_DTYPE
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.ways import (
    ADAPTER_WAYS,
    ARGUMENT_VALUES,
    DECIDED,
    FULL_WAYS,
    LOSSES,
    REFUSALS,
)
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

_LAUNCHERS = ("torchrun", "python", "python3", "accelerate", "deepspeed")
"""Start a script whose flags are TrainingArguments."""
_CALLS = ("TrainingArguments", "Seq2SeqTrainingArguments")


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the TrainingArguments YAML of a plan, the files beside it, and how to start it."""
    recipe = job.plan.recipe
    name, deepspeed = f"{job.stem}.yaml", f"{job.stem}.ds.json"
    main = EmittedFile(name=name, text=to_yaml(_header(job, name), _settings(job, deepspeed)))
    beside: tuple[EmittedFile, ...] = ()
    if recipe.sharding in ZERO:
        beside = (EmittedFile(name=deepspeed, text=to_json(auto_config(recipe))),)
    command = f"{processes(job)} train.py --config {name}"
    environment = {**one_device(job), **arguments.hybrid_environment(job)}
    launch = launch_file(job, command, environment=environment)
    model = model_file(job, ['tokens = tokenizer(texts, **kwargs["tokenizer"])'], loop.length(job))
    return main, *beside, model, launch


def _header(job: Job, name: str) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Data", f"{job.plan.batch.seq_len} tokens a sequence"),
        (
            "Script",
            f"train.py reads HfArgumentParser(TrainingArguments).parse_yaml_file({name!r}),",
        ),
        ("", f"then loads the model and cuts the text as {job.stem}.model.yaml says"),
        start(job),
    )


def _settings(job: Job, deepspeed: str) -> Iterator[Setting]:
    recipe = job.plan.recipe
    yield Setting("output_dir", "out")
    yield from arguments.batch_and_rate(job)
    yield from arguments.optimizer(recipe)
    yield from arguments.precision(recipe)
    yield from arguments.checkpointing(recipe)
    yield from written((arguments.LOSS,), job.options())
    yield from arguments.fsdp(job)
    yield from arguments.deepspeed(recipe, deepspeed)


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say."""
    reads: list[Read] = []
    problems: list[Finding] = []
    for file in files:
        for part in _arguments(file):
            found, unknown = arguments.read_arguments(part, files)
            reads += found
            problems += unknown
        if file.format is Format.YAML:
            reads += read_keys(loop.LENGTH, file)[0]
    found, unknown = read_model(files)
    return reading("hf-trainer", [*reads, *found, *read_launch(files)], [*problems, *unknown])


def _arguments(file: ConfigFile) -> Iterator[ConfigFile]:
    """Yield the TrainingArguments of a file: all of a config, a call of a script, flags of its."""
    if file.format is Format.PYTHON:
        yield from (file.under(name) for name in file.data if name in _CALLS)
    elif file.format is Format.SHELL:
        yield from (part for word in _LAUNCHERS for part in flags_of([file], word))
    elif file.format in (Format.YAML, Format.JSON) and not is_deepspeed(file):
        yield file


FORMAT = TrainerFormat(
    trainer="hf-trainer",
    needs=(LOADS_BY_DTYPE, FSDP_ARGUMENTS, Needs(package="accelerate"), *BESIDE_TRANSFORMERS),
    decides=DECIDED | {"loss"},
    ways=(*FULL_WAYS, *ADAPTER_WAYS),
    values={
        **WITHOUT_OWN_DTYPES,
        **ARGUMENT_VALUES,
        "loss": LOSSES,
        "zero_buckets": ("auto",),
    },
    refusals=REFUSALS,
    marks=frozenset({"TrainingArguments", "Seq2SeqTrainingArguments"}),
    write=write,
    read=read,
)

"""Passes that multiply, global batches that do not divide, and devices that nobody counted."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.checker.roles import ACCELERATE, DEEPSPEED, LAUNCH
from batchplan.checker.rule import Remark, Rule, about, at, set_to
from batchplan.checker.subject import Subject
from batchplan.configfile import ConfigFile, Entry, Severity

_TRIPLE = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
_FILLS_AUTO = ("hf-trainer", "trl", "axolotl", "llamafactory", "ms-swift", "accelerate")
"""Put numbers in place of ``"auto"``. Source: transformers integrations/deepspeed.py,
trainer_config_process; accelerate accelerator.py, _prepare_deepspeed."""
_ON_ARGUMENTS = ("hf-trainer", "trl", "axolotl", "llamafactory", "ms-swift")
_SAME = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.weight_decay": "weight_decay",
}
"""Keys of DeepSpeed that must say what the Trainer's do."""
_PASSES = (
    "gradient_accumulation_steps",
    "deepspeed_config.gradient_accumulation_steps",
    "accelerator_config.gradient_accumulation_kwargs.num_steps",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
)


def _multiplies(subject: Subject) -> Iterator[Remark]:
    """Passes that two places set to different numbers.

    Transformers refuses a DeepSpeed file that differs; ``Accelerator`` takes DeepSpeed's number,
    so that a loop which divides by its own is scaled wrongly.

    Source: transformers integrations/deepspeed.py, fill_match; accelerate accelerator.py,
    _prepare_deepspeed; transformers trainer.py, create_accelerator_and_postprocess.
    """
    said = [found for found in subject.entries(*_PASSES) if _whole(found[1].value)]
    if len(said) < 2:
        return
    first, last = said[0], next((one for one in said if _differs(one, said[0])), None)
    if last is None:
        return
    run = subject.run
    sequences = [run.micro_batch * entry.value * run.num_ranks for _, entry in (first, last)]
    file, entry = last
    yield at(
        file,
        entry.path,
        f"{entry.dotted} is {entry.value} here and {first[1].value} in {first[0].name} "
        f"({first[1].dotted}): {sequences[1]:,} or {sequences[0]:,} sequences a step.",
        fix=f"Say it once: leave it to {first[0].name}, or write the same number.",
        severity=Severity.WARNING if subject.is_on("accelerate") else None,
    )


def _set_twice(subject: Subject) -> Iterator[Remark]:
    yield from _multiplies(subject)
    yield from _both_of_axolotl(subject)


def _both_of_axolotl(subject: Subject) -> Iterator[Remark]:
    """Axolotl takes the passes or the global batch, never both.

    Source: axolotl utils/schemas/validation.py, check_gas_bsz raises ValueError.
    """
    passes, whole = subject.first("gradient_accumulation_steps"), subject.first("batch_size")
    if not subject.is_on("axolotl") or not (passes and passes[1].value and whole):
        return
    file, entry = whole
    if entry.value:
        yield at(
            file,
            entry.path,
            f"batch_size {entry.value} and gradient_accumulation_steps {passes[1].value} both set "
            "the passes: axolotl refuses the file.",
            fix="Keep one of them.",
        )


def _differs(one: tuple[ConfigFile, Entry], other: tuple[ConfigFile, Entry]) -> bool:
    return bool(one[1].value != other[1].value)


def _filled(subject: Subject) -> Iterator[Remark]:
    """Passes that the trainer makes up from the devices, so that a step keeps its sequences.

    Source: the row of the trainer's policy that says so.
    """
    row = subject.run.settled.rows.get("accum_steps")
    if row is None or not row.of_a_step or subject.says("global_batch"):
        return
    run = subject.run
    yield about(
        subject,
        "micro_batch",
        f"{row.key.split(':')[0]} is not given, so {subject.trainer} fills a step up to "
        f"{row.value} sequences: {run.accum_steps} passes on {_devices(run.num_ranks)}, "
        f"{run.global_batch_size:,} sequences a step, and another number on other devices.",
        fix=f"Say it: {row.key.split(':')[0]}.",
    )


def _launched(subject: Subject) -> Iterator[Remark]:
    """Devices of the launch script and of --devices.

    Source: the launcher starts one rank for each, and the batch counts ranks.
    """
    read = subject.reading.of("num_ranks")
    said, asked = subject.run.configured.get("num_ranks"), subject.asked_devices
    if read is None or asked is None or not isinstance(said, int) or said == asked:
        return
    each = subject.run.micro_batch * subject.run.accum_steps
    yield about(
        subject,
        "num_ranks",
        f"{read.key} starts {_devices(said)} and --devices says {asked}: "
        f"{each * said:,} or {each * asked:,} sequences a step.",
        fix="Make them agree.",
    )


def _two_counts(subject: Subject) -> Iterator[Remark]:
    """The accelerate file and the launch script start different numbers of ranks.

    Source: accelerate commands/launch.py, _validate_launch_command: flags win over the file.
    """
    files = [(file, file.get("num_processes")) for file in subject.of_role(ACCELERATE)]
    flags = [
        found
        for found in subject.entries("num_processes")
        if subject.roles[found[0].name] == LAUNCH and _whole(_number(found[1].value))
    ]
    for file, count in files:
        for script, entry in flags:
            if _whole(count) and _number(entry.value) != count:
                yield at(
                    script,
                    entry.path,
                    f"--num_processes {entry.value} here wins over num_processes: {count} in "
                    f"{file.name}.",
                    fix="Write one of them only.",
                )


def _triple(subject: Subject) -> Iterator[Remark]:
    """DeepSpeed asserts that the global batch is micro-batch x passes x ranks.

    Source: deepspeed runtime/config.py, DeepSpeedConfig._batch_assertion.
    """
    for file in subject.of_role(DEEPSPEED):
        micro, passes, whole = (file.get(name) for name in _TRIPLE)
        ranks = subject.run.num_ranks
        # Left out, DeepSpeed takes what makes it whole; "auto" is the trainer's.
        if micro == "auto":
            micro = subject.run.micro_batch
        if passes == "auto":
            passes = subject.run.accum_steps
        if not (_whole(micro) and _whole(passes) and _whole(whole)):
            continue
        made = micro * passes * ranks
        if made != whole:
            yield at(
                file,
                (_TRIPLE[2],),
                f"train_batch_size {whole} is not {micro} x {passes} x {_devices(ranks)} = {made}: "
                "DeepSpeed stops at once.",
                fix=f"Set train_batch_size: {made}"
                + (', or "auto".' if subject.is_on(*_FILLS_AUTO) else "."),
                edits=set_to((_TRIPLE[2],), to=made),
            )


def _mismatch(subject: Subject) -> Iterator[Remark]:
    """Transformers fills in only what is "auto", and refuses a DeepSpeed file that differs.

    Source: transformers integrations/deepspeed.py, trainer_config_process and fill_match.
    """
    if not subject.is_on(*_ON_ARGUMENTS):
        return
    for file in subject.of_role(DEEPSPEED):
        for theirs, own in _SAME.items():
            entry = file.entries.get(tuple(theirs.split(".")))
            said = subject.first(own)
            if entry is None or said is None or said[1].value == entry.value:
                continue
            if _is_number(entry.value) and _is_number(said[1].value):
                yield at(
                    file,
                    entry.path,
                    f"{theirs} is {entry.value} here and {own} is {said[1].value} in "
                    f"{said[0].name}: the Trainer refuses it.",
                    fix=f'Set {theirs}: "auto".',
                    edits=set_to(entry.path, to="auto"),
                )


def _auto(subject: Subject) -> Iterator[Remark]:
    """The word "auto" is transformers' and accelerate's; DeepSpeed itself does not know it.

    A DeepSpeed file by itself may be one that stands beside a trainer's: nobody says whose.

    Source: transformers integrations/deepspeed.py; deepspeed runtime/config.py compares numbers.
    """
    if subject.is_on(*_FILLS_AUTO):
        return
    is_alone = subject.is_on("deepspeed") and subject.asked_trainer is None
    for file in subject.of_role(DEEPSPEED):
        autos = [entry for entry in file.entries.values() if entry.value == "auto"]
        if autos and is_alone and len(subject.files) == 1:
            yield at(
                file,
                autos[0].path,
                f'{autos[0].dotted} is "auto", as are {len(autos)} values in all: transformers and '
                "accelerate fill them in, DeepSpeed by itself stops.",
                fix="Name the trainer's file too, and the batch and precision are known.",
                severity=Severity.NOTE,
            )
            continue
        for entry in autos:
            yield at(
                file,
                entry.path,
                f'{entry.dotted} is "auto", which {subject.trainer} does not fill in.',
                fix="Write the value.",
            )


def _floored(subject: Subject) -> Iterator[Remark]:
    """LitGPT floors twice: per device, then per micro-batch; zero passes fail an assertion.

    Source: litgpt args.py, TrainArgs.batch_size and gradient_accumulation_iters.
    """
    run = subject.run
    if not subject.is_on("litgpt") or run.asked_global is None:
        return
    passes = run.asked_global // run.num_ranks // run.micro_batch
    made = passes * run.num_ranks * run.micro_batch
    if made == run.asked_global:
        return
    exact = max(1, round(run.asked_global / run.num_ranks / run.micro_batch))
    better = exact * run.num_ranks * run.micro_batch
    read = subject.reading.of("global_batch")
    words = f"{run.asked_global} // {_devices(run.num_ranks)} // {run.micro_batch} = {passes}"
    yield about(
        subject,
        "global_batch",
        f"LitGPT floors {words} passes: "
        + (f"it trains {made:,} sequences a step." if passes else "it stops at once."),
        fix=f"Set it to {better}.",
        severity=None if passes else Severity.ERROR,
        edits=() if read is None else set_to(tuple(read.key.split(".")), to=better),
    )


def _divides(subject: Subject) -> Iterator[Remark]:
    """Torchtitan's global batch is a multiple of micro-batch x data-parallel ranks.

    Source: torchtitan trainer.py, Trainer.__init__ asserts.
    """
    run = subject.run
    each = run.micro_batch * run.num_ranks
    if not subject.is_on("torchtitan") or run.asked_global is None or not run.asked_global % each:
        return
    yield about(
        subject,
        "global_batch",
        f"Global batch {run.asked_global} is no multiple of {run.micro_batch} x "
        f"{_devices(run.num_ranks)} = {each}: torchtitan stops at once.",
        fix=f"Set it to {max(each, round(run.asked_global / each) * each)}.",
    )


def _devices(count: int) -> str:
    return f"{count:,} device{'' if count == 1 else 's'}"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdigit() else value


RULES = (
    Rule(
        code="accumulation-multiplies",
        severity=Severity.ERROR,
        title="Accumulation steps set in two places",
        source="transformers integrations/deepspeed.py, fill_match; accelerate accelerator.py",
        look=_set_twice,
    ),
    Rule(
        code="accumulation-filled",
        severity=Severity.WARNING,
        title="Accumulation steps that the trainer makes up",
        source="swift trainers/arguments.py, TrainArgumentsMixin.__post_init__; litgpt args.py",
        look=_filled,
    ),
    Rule(
        code="devices-differ",
        severity=Severity.WARNING,
        title="Devices of the launch and of the question",
        source="the launcher's own count of ranks",
        look=_launched,
    ),
    Rule(
        code="processes-twice",
        severity=Severity.WARNING,
        title="Numbers of processes in two places",
        source="accelerate commands/launch.py, _validate_launch_command",
        look=_two_counts,
    ),
    Rule(
        code="deepspeed-triple-mismatch",
        severity=Severity.ERROR,
        title="DeepSpeed's three batch sizes contradict each other",
        source="deepspeed runtime/config.py, DeepSpeedConfig._batch_assertion",
        look=_triple,
    ),
    Rule(
        code="deepspeed-trainer-mismatch",
        severity=Severity.ERROR,
        title="A DeepSpeed file that contradicts the trainer's",
        source="transformers integrations/deepspeed.py, fill_match",
        look=_mismatch,
    ),
    Rule(
        code="deepspeed-auto",
        severity=Severity.ERROR,
        title='"auto" where nobody fills it in',
        source="transformers integrations/deepspeed.py, HfTrainerDeepSpeedConfig",
        look=_auto,
    ),
    Rule(
        code="litgpt-floor",
        severity=Severity.WARNING,
        title="A global batch that LitGPT floors",
        source="litgpt args.py, TrainArgs",
        look=_floored,
    ),
    Rule(
        code="torchtitan-indivisible",
        severity=Severity.ERROR,
        title="A global batch that does not divide",
        source="torchtitan trainer.py, Trainer.__init__",
        look=_divides,
    ),
)

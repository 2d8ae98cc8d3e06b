"""A training loop of the user's own: keyword arguments of the calls it makes, as a YAML file.

Each block is named as the call that takes it, so one table of keys reads the file and a script
that writes the same arguments out. Sources: accelerate ``accelerator.py``,
``utils/dataclasses.py``; torch ``utils/data/dataloader.py``; transformers ``optimization.py,
get_scheduler``, ``modeling_utils.py, gradient_checkpointing_enable``; liger-kernel
``transformers/monkey_patch.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Checkpointing, Loss
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import FSDP
from batchplan.trainers.keymap import Key, read, read_at, written
from batchplan.trainers.reading import Read
from batchplan.trainers.shared.optimizer_classes import CALLS, read_class_path, read_optimizer
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

LOADER = (Key(key="DataLoader.batch_size", option="micro_batch", why="sequences a device"),)
LENGTH = (Key(key="tokenizer.max_length", option="seq_len"),)
SCHEDULE = (
    Key(key="get_scheduler.name", option="schedule"),
    Key(key="get_scheduler.0", option="schedule", is_written=False),
    Key(key="get_scheduler.num_warmup_steps", option="warmup_steps", why="optimizer steps"),
    Key(key="get_scheduler.num_training_steps", option="max_steps"),
)
_CHECKPOINTING = "gradient_checkpointing_enable"
_REENTRANT = ("gradient_checkpointing_kwargs", "use_reentrant")
_LIGER = "_apply_liger_kernel_to_instance"
_LIGER_MODELS = "AutoLigerKernelForCausalLM"


def loop_file(
    job: Job, header: Iterable[str], usage: Iterable[str], settings: Iterable[Setting]
) -> EmittedFile:
    """Return the YAML file with the arguments, under lines that say what calls take them."""
    name = f"{job.stem}.loop.yaml"
    lines = [*header, f"What train.py calls: loop = yaml.safe_load(open({name!r}))", *usage]
    return EmittedFile(name=name, text=to_yaml(lines, settings))


def usage_of_data() -> Iterator[str]:
    """Yield how the batches are made."""
    yield 'tokens = tokenizer(texts, **loop["tokenizer"])'
    yield 'loader = DataLoader(data, shuffle=True, **loop["DataLoader"])'


def usage_of_optimizer() -> Iterator[str]:
    """Yield how a class path becomes an optimizer."""
    yield 'optimizer = pydoc.locate(loop["optimizer"]["class_path"])('
    yield "    [p for p in model.parameters() if p.requires_grad],"
    yield '    **loop["optimizer"]["init_args"])'


def usage_of_model(job: Job) -> Iterator[str]:
    """Yield what is done to the model once it is loaded."""
    recipe = job.plan.recipe
    if recipe.loss is Loss.FUSED:
        yield f"from liger_kernel.transformers import {_LIGER}"
        yield f'{_LIGER}(model=model, **loop["{_LIGER}"])'
    if _checkpoints(job):
        yield f'model.{_CHECKPOINTING}(**loop["{_CHECKPOINTING}"])'


def usage_of_scheduler(job: Job) -> str:
    """Return the call that makes the schedule of the learning rate."""
    steps = "" if job.epoch_steps else "num_training_steps=steps, "
    return f'get_scheduler(optimizer=optimizer, {steps}**loop["get_scheduler"])'


def data(job: Job) -> Iterator[Setting]:
    """Yield how long sequences are, and how many a device takes at once."""
    yield from length(job)
    yield from written(LOADER, job.options())
    yield Setting("DataLoader.drop_last", True, "every step has all its sequences")


def length(job: Job) -> Iterator[Setting]:
    """Yield how long sequences are."""
    yield from written(LENGTH, job.options())
    yield Setting("tokenizer.truncation", True)
    yield Setting("tokenizer.padding", "max_length", "or pack sequences to that length")


def model(job: Job) -> Iterator[Setting]:
    """Yield the arguments of ``usage_of_model`` and ``usage_of_scheduler``."""
    recipe = job.plan.recipe
    if recipe.loss is Loss.FUSED:
        yield Setting(f"{_LIGER}.fused_linear_cross_entropy", True, "no logits are kept")
        yield Setting(f"{_LIGER}.cross_entropy", False)
    if _checkpoints(job):
        yield Setting(f"{_CHECKPOINTING}.{'.'.join(_REENTRANT)}", recipe.reentrant)
    steps = {"max_steps": int(job.epoch_steps * job.epochs)} if job.epoch_steps else {}
    yield from written(SCHEDULE, {**job.options(), **steps})


def _checkpoints(job: Job) -> bool:
    """Whether the model checkpoints itself; under FSDP the wrapper does."""
    recipe = job.plan.recipe
    return recipe.checkpointing is Checkpointing.FULL and recipe.sharding not in FSDP


def by_call(file: ConfigFile) -> ConfigFile:
    """Return a script with its calls under their last names: ``AdamW`` of ``torch.optim.AdamW``.

    Of several calls of one name the first counts. Other files stay as they are.
    """
    if file.format is not Format.PYTHON:
        return file
    whole: dict[str, str] = {}
    for call in map(str, file.data):
        whole.setdefault(call.partition("#")[0].rpartition(".")[2], call)
    short = {call: name for name, call in whole.items()}
    return replace(
        file,
        data={short[call]: value for call, value in file.data.items() if call in short},
        entries={
            (short[str(path[0])], *path[1:]): entry
            for path, entry in file.entries.items()
            if path[0] in short
        },
    )


def read_loop(file: ConfigFile, keys: Iterable[Key] = ()) -> tuple[list[Read], list[Finding]]:
    """Return what the calls of a loop say.

    Args:
        file: a file of arguments, or a script (``by_call``).
        keys: the trainer's own, beside those of this module.
    """
    reads, problems = read((*LOADER, *LENGTH, *SCHEDULE, *keys), file)
    for found in _optimizers(file):
        (reads if isinstance(found, Read) else problems).append(found)  # type: ignore[arg-type]
    return [*reads, *_model(file)], problems


def _optimizers(file: ConfigFile) -> Iterator[Read | Finding]:
    if ("optimizer", "class_path") in file:
        yield from read_class_path(file)
        return
    for name in file.data if file.format is Format.PYTHON else ():
        if name in CALLS:
            yield from read_optimizer(file.under(name), name)
            return


def _model(file: ConfigFile) -> Iterator[Read]:
    if _CHECKPOINTING in file:
        yield read_at(file, "checkpointing", Checkpointing.FULL.value, _CHECKPOINTING)
        reentrant = file.get(_CHECKPOINTING, *_REENTRANT)
        if isinstance(reentrant, bool):
            yield read_at(file, "reentrant", reentrant, _CHECKPOINTING, *_REENTRANT)
    if file.get(_LIGER, "fused_linear_cross_entropy") is not None:
        is_fused = file.get(_LIGER, "fused_linear_cross_entropy") is True
        value = Loss.FUSED if is_fused else Loss.STANDARD
        yield read_at(file, "loss", value.value, _LIGER, "fused_linear_cross_entropy")
    for path, entry in file.entries.items():
        if str(entry.path[0]).startswith(_LIGER_MODELS):
            yield read_at(file, "loss", Loss.FUSED.value, *path)
            return

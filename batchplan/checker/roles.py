"""What each file of a run is to its trainer, and whose keys it is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchplan.configfile import ConfigFile, Format, Path
from batchplan.sources.trainer_keys import TrainerKeys

MAIN, CALLS, ACCELERATE, DEEPSPEED = "main", "calls", "accelerate", "deepspeed"
SCRIPT, LAUNCH = "script", "launch"
_ORDER = (MAIN, ACCELERATE, DEEPSPEED, CALLS, SCRIPT, LAUNCH)
CONFIGS = (MAIN, ACCELERATE, DEEPSPEED, CALLS)

_MARKS = {
    ACCELERATE: {"compute_environment", "distributed_type", "main_training_function"},
    DEEPSPEED: {"zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size"},
    CALLS: {"from_pretrained", "DataLoader", "Accelerator", "get_scheduler"},
}
"""Top-level keys that only such a file has; one of calls holds the arguments of a script's."""
_BY_FORMAT = {Format.PYTHON: SCRIPT, Format.SHELL: LAUNCH}


CONFIG = "config"
"""The list of a trainer's own file, where it has one for all its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One list of keys, and where in a file they stand."""

    trainer: str
    """Whose snapshot it is in."""
    name: str
    below: int = 0
    """Keys around it, which are none of its own."""
    is_own: bool = False
    """Whether it holds for that trainer alone, because others have a call of that name."""


_LORA = Table(trainer="hf-trainer", name="lora_config", below=1)
_BLOCKS = {
    ("from_pretrained", "quantization_config"): Table(
        trainer="hf-trainer", name="quantization_config", below=2
    ),
    ("lora",): _LORA,
}
"""Parts of a file of calls."""
_BY_CALL = {
    "TrainingArguments": Table(trainer="hf-trainer", name=CONFIG, below=1),
    "LoraConfig": _LORA,
    "BitsAndBytesConfig": Table(trainer="hf-trainer", name="quantization_config", below=1),
    "Trainer": Table(trainer="hf-trainer", name="Trainer", below=1, is_own=True),
    "SFTConfig": Table(trainer="trl", name=CONFIG, below=1),
    "SFTTrainer": Table(trainer="trl", name="SFTTrainer", below=1, is_own=True),
    "FastLanguageModel.from_pretrained": Table(trainer="unsloth", name="from_pretrained", below=1),
    "FastLanguageModel.get_peft_model": Table(trainer="unsloth", name="get_peft_model", below=1),
}
"""Calls of a script whose keyword arguments are known."""


def roles_of(files: Sequence[ConfigFile]) -> dict[str, str]:
    """Return the role of every file by its name."""
    return {file.name: _role(file) for file in files}


def _role(file: ConfigFile) -> str:
    if file.format in _BY_FORMAT:
        return _BY_FORMAT[file.format]
    for role, marks in _MARKS.items():
        if marks & set(map(str, file.data)):
            return role
    return MAIN


def main_first(files: Sequence[ConfigFile], roles: Mapping[str, str]) -> tuple[ConfigFile, ...]:
    """Return the files, the trainer's own before what stands beside it."""
    return tuple(sorted(files, key=lambda file: _ORDER.index(roles[file.name])))


def table_of(trainer: str, role: str, path: Path) -> Table | None:
    """Return the list that a key must be in, or None where nobody has one.

    >>> table_of("hf-trainer", "accelerate", ("fsdp_config", "fsdp_version")).trainer
    'accelerate'
    >>> table_of("trl", "script", ("peft.LoraConfig", "r")).name
    'lora_config'
    >>> table_of("lightning", "script", ("L.Trainer", "max_epochs")) is None
    True
    """
    if role == SCRIPT:
        call = str(path[0])
        table = _BY_CALL.get(call) or _BY_CALL.get(call.split(".")[-1])
        return None if table and table.is_own and table.trainer != trainer else table
    if role == CALLS:
        return next(
            (table for prefix, table in _BLOCKS.items() if path[: table.below] == prefix), None
        )
    if role == LAUNCH:
        is_flag = path[0] == "flags" and trainer not in (ACCELERATE, DEEPSPEED)
        return Table(trainer=trainer, name=CONFIG, below=1) if is_flag else None
    return Table(trainer=role if role in (ACCELERATE, DEEPSPEED) else trainer, name=CONFIG)


def list_for(table: Table, keys: TrainerKeys, file: ConfigFile) -> str:
    """Return the list of a trainer that a file is checked by: of several, the one that fits best.

    LitGPT has one for each of its recipes.
    """
    if table.name in keys.files:
        return table.name
    names = [str(path[0]) for path in file.entries if len(path) == 1]
    return max(keys.files, key=lambda one: sum(keys.is_known(one, name) for name in names))

"""Scripts under a general launcher, whose flags are the keys of a trainer's config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import PurePosixPath

from batchplan.configfile import ConfigFile, Entry, Format
from batchplan.configfile.shell_file import LAUNCHER_MODULES, MODULE_FLAGS
from batchplan.trainers.reading import Read, Reading

ON_FLAGS = "hf-trainer"
"""Whose keys the flags of a script mostly are: HfArgumentParser makes them of TrainingArguments."""
_GENERAL = frozenset({"torchrun", "python", "python3", "accelerate", "deepspeed"})
"""Start any script; the others are a trainer's own."""
_PROGRAMS = {"trl": "trl", "ms-swift": "swift", "torchtitan": "torchtitan.train"}
"""Trainers that a general launcher or a script starts too, with the flags of their program.

Source: trl scripts/sft.py; swift cli/sft.py; torchtitan run_train.sh.
"""
READ_FLAGS = (ON_FLAGS, *_PROGRAMS, "litgpt")
"""Trainers of which flags are read; of the others, only files are."""
_OF_SCRIPTS = {
    "model": ("model_name_or_path",),
    "seq_len": ("block_size", "max_seq_length", "model_max_length"),
}
"""Flags beside the trainer's. Source: transformers examples/pytorch/language-modeling/run_clm.py;
FastChat fastchat/train/train.py."""
_SCRIPT_SUFFIX = ".py"
_OVERRIDE = re.compile(r"~?[A-Za-z_][\w.]*=")


def program_words(word: str) -> Iterator[str]:
    """Yield what a word of a command may be known by: itself, its file, its module, its package.

    >>> list(program_words("trl/scripts/sft.py"))
    ['trl/scripts/sft.py', 'sft.py', 'trl.scripts.sft']
    >>> list(program_words("axolotl.cli.train"))
    ['axolotl.cli.train', 'axolotl']
    """
    path = PurePosixPath(word)
    yield word
    if path.name != word:
        yield path.name
    if path.suffix == _SCRIPT_SUFFIX:
        yield ".".join(path.with_suffix("").parts)
    elif all(part.isidentifier() for part in word.split(".")) and "." in word:
        yield word.partition(".")[0]


def flags_behind_script(file: ConfigFile) -> dict[str, Entry]:
    """Return the flags that a general launcher hands to its script, by name without dashes."""
    script = script_of(file)
    if script is None:
        return {}
    flags = own_flags(file).items()
    return {name: flag for name, flag in flags if flag.written.start > script.written.end}


def own_flags(file: ConfigFile) -> dict[str, Entry]:
    """Return all flags of a launch command, by name without dashes."""
    return {
        flag_name(str(path[1])): entry
        for path, entry in file.entries.items()
        if path[0] == "flags" and len(path) == 2
    }


def overrides(file: ConfigFile) -> dict[str, Entry]:
    """Return the words of a command that set a key of a config, such as ``batch_size=4``."""
    words = {str(entry.value): entry for entry in _program(file)}
    return {word: entry for word, entry in words.items() if _OVERRIDE.match(word)}


def script_of(file: ConfigFile) -> Entry | None:
    """Return the script or module that a general launcher starts."""
    words = _program(file)
    if not words or PurePosixPath(str(words[0].value)).name not in _GENERAL:
        return None
    scripts = (word for word in words if str(word.value).endswith(_SCRIPT_SUFFIX))
    modules = (
        word
        for flag, word in pairwise(words)
        if flag.value in MODULE_FLAGS and not str(word.value).startswith(LAUNCHER_MODULES)
    )
    return next(scripts, None) or next(modules, None)


def flag_name(flag: str) -> str:
    """Return the key that a flag is.

    >>> flag_name("--warmup-steps")
    'warmup_steps'
    """
    return flag.lstrip("-").replace("-", "_")


def as_programs(files: Sequence[ConfigFile], trainer: str) -> tuple[ConfigFile, ...]:
    """Return files in which a script's flags are its trainer's, once it is known whose they are."""
    program = _PROGRAMS.get(trainer)
    return tuple(_under(file, program) if program and own_flags(file) else file for file in files)


def _under(file: ConfigFile, program: str) -> ConfigFile:
    words = _program(file)
    if any(entry.value == program for entry in words):
        return file
    path = ("program", len(words))
    added = replace(words[-1], path=path, value=program)
    return replace(file, entries={**file.entries, path: added})


def with_script_flags(reading: Reading, files: Sequence[ConfigFile]) -> Reading:
    """Return a reading with what flags of a script say beside the trainer's keys."""
    found = [
        Read(
            option=option,
            value=entry.value,
            key=entry.dotted,
            file=file.name,
            line=(entry.key or entry.written).line,
        )
        for file in files
        for flags in [flags_behind_script(file)]
        for option, names in _OF_SCRIPTS.items()
        for name in names
        if reading.trainer == ON_FLAGS and reading.of(option) is None
        for entry in [flags.get(name)]
        if entry is not None
    ]
    return replace(reading, reads=(*found, *reading.reads))


def _program(file: ConfigFile) -> list[Entry]:
    if file.format is not Format.SHELL:
        return []
    return [entry for path, entry in file.entries.items() if path[0] == "program" and path[1:]]

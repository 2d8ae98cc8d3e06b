"""Which trainer a set of files is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from batchplan.checker.launched import ON_FLAGS, flags_behind_script, program_words
from batchplan.checker.roles import CONFIG, MAIN, Table, list_for, roles_of
from batchplan.checker.subject import own_name
from batchplan.configfile import ConfigFile, Format
from batchplan.errors import SpecError
from batchplan.sources.trainer_keys import TrainerKeys
from batchplan.trainers.defaults import TRAINERS
from batchplan.trainers.format import format_of

_BESIDE = ("accelerate", "deepspeed")
"""Configs of these stand beside those of other trainers, and are the run only by themselves or
under a script that loops with them."""
OWN_LOOP = "accelerate"
"""What a training loop under nobody's marks is taken for: the plainest policy there is."""
_MOSTLY, _SEVERAL = 0.5, 3
"""Share of the keys, or number of them, that a trainer must know to be taken where no mark
decides: a choice."""
_BUILT_ON = {
    "unsloth": ("trl", "hf-trainer"),
    "trl": ("hf-trainer",),
}
"""Trainers whose scripts make the calls of another: ``SFTTrainer`` takes ``TrainingArguments``."""
_OF_PEFT = "prepare_model_for_kbit_training"
"""Takes a keyword that is a mark of unsloth's, under any trainer."""
_OF_CONFIGS = (Format.YAML, Format.JSON)
_SUFFIXES = (".yaml", ".json")
"""Of trainers that are configured by keys, not by a script."""


def detect_trainer(files: Sequence[ConfigFile], keys_of: Callable[[str], TrainerKeys]) -> str:
    """Return the trainer whose files these are.

    First by marks: keys, calls and programs that no other trainer has. Where none is borne, and of
    several that are marked, it is the one that knows the largest share of the keys, by an older
    name or a newer; of two that know as many, the one with fewer keys in all, which the other
    builds on. A launch script whose flags are those of ``ON_FLAGS`` is its, and a training loop of
    the user's own is ``OWN_LOOP``.

    Args:
        files: of one run.
        keys_of: the keys of a trainer's release.

    Raises:
        SpecError: when it is none of them or could be several, with the candidates.
    """
    marked = {trainer: hits for trainer in TRAINERS if (hits := _marks(trainer, files, keys_of))}
    own = [trainer for trainer in marked if trainer not in _BESIDE]
    scripts = [file for file in files if file.format is Format.PYTHON]
    looping = [trainer for trainer in _BESIDE if _marks(trainer, scripts, keys_of)]
    candidates = (
        _outermost(own)
        or looping
        or _knowing(files, keys_of)
        or _with_flags(files, keys_of)
        or list(marked)
    )
    best = _most(candidates, lambda trainer: _share(keys_of(trainer), files))
    best = _most(best, lambda trainer: marked.get(trainer, 0))
    best = _most(best, lambda trainer: -_num_keys(keys_of(trainer)))
    if len(best) == 1:
        return best[0]
    if not best and any(_has_loop(file) for file in files):
        return OWN_LOOP
    names = ", ".join(file.name for file in files)
    if not best:
        raise SpecError(
            f"Cannot tell which trainer {names} is for. Name it: --trainer {', '.join(TRAINERS)}."
        )
    raise SpecError(f"{names} could be for {' or '.join(best)}. Name it with --trainer.")


def _has_loop(file: ConfigFile) -> bool:
    return file.format is Format.PYTHON and ".backward(" in file.text


def _knowing(files: Sequence[ConfigFile], keys_of: Callable[[str], TrainerKeys]) -> list[str]:
    """Return the trainers that know most keys of the files that stand beside nobody's."""
    return [
        trainer
        for trainer in TRAINERS
        if trainer not in _BESIDE
        and format_of(trainer).suffix in _SUFFIXES
        and _is_mostly_known(_are_known(keys_of(trainer), files))
    ]


def _with_flags(files: Sequence[ConfigFile], keys_of: Callable[[str], TrainerKeys]) -> list[str]:
    """Return ``ON_FLAGS`` where a launcher hands a script the flags that are its keys."""
    names = [name for file in files for name in flags_behind_script(file)]
    keys = keys_of(ON_FLAGS)
    return [ON_FLAGS] if _is_mostly_known([_is_key(keys, name) for name in names]) else []


def _is_mostly_known(known: list[bool]) -> bool:
    return sum(known) >= min(_SEVERAL, max(1, _MOSTLY * len(known)))


def _outermost(trainers: list[str]) -> list[str]:
    """Return those that no other of them is built on."""
    below = {inner for trainer in trainers for inner in _BUILT_ON.get(trainer, ())}
    return [trainer for trainer in trainers if trainer not in below]


def _most(names: list[str], score: Callable[[str], float]) -> list[str]:
    if len(names) < 2:
        return names
    scores = {name: score(name) for name in names}
    return [name for name in names if scores[name] == max(scores.values())]


def _marks(trainer: str, files: Iterable[ConfigFile], keys_of: Callable[[str], TrainerKeys]) -> int:
    """Return how many of a trainer's marks the files bear.

    In a config only its keys are: the name of a program may be another trainer's key.
    """
    marks = format_of(trainer).marks
    found: set[str] = set()
    for file in files:
        borne = set(marks.intersection(_words(file)))
        if borne and file.format in _OF_CONFIGS:
            keys = keys_of(trainer)
            borne = {word for word in borne if _is_key(keys, word)}
        found |= borne
    return len(found)


def _is_key(keys: TrainerKeys, name: str) -> bool:
    return name in keys.renamed or any(name in file.keys for file in keys.files.values())


def _words(file: ConfigFile) -> Iterator[str]:
    """Yield what a mark may be: keys, the names of calls, the words of a launch command."""
    for path, entry in file.entries.items():
        if file.format is Format.PYTHON and str(path[0]).split(".")[-1] == _OF_PEFT:
            continue
        yield entry.dotted
        yield own_name(file.format, path)
        if file.format is Format.SHELL and path[0] == "program":
            yield from program_words(str(entry.value))
        if file.format is Format.PYTHON:
            yield str(path[0])


def _share(keys: TrainerKeys, files: Sequence[ConfigFile]) -> float:
    known = _are_known(keys, files)
    return round(sum(known) / len(known), 3) if known else 0.0


def _are_known(keys: TrainerKeys, files: Sequence[ConfigFile]) -> list[bool]:
    """Return, of each top-level key of the main files, whether a trainer knows it, or knew."""
    roles = roles_of(files)
    table = Table(trainer=keys.trainer, name=CONFIG)
    found: list[bool] = []
    for file in files:
        if roles[file.name] == MAIN:
            names = [str(path[0]) for path in file.entries if len(path) == 1]
            listed = list_for(table, keys, file)
            found += (keys.is_known(listed, name) or name in keys.renamed for name in names)
    return found


def _num_keys(keys: TrainerKeys) -> int:
    """Return how many top-level keys its own file may have."""
    return max(sum("." not in name for name in file.keys) for file in keys.files.values())

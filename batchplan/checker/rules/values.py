"""Values that arrive as text where a number or a switch is meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batchplan.checker.rates import RATES
from batchplan.checker.roles import ACCELERATE, DEEPSPEED, MAIN, SCRIPT, table_of
from batchplan.checker.rule import Remark, Rule, at, set_to
from batchplan.checker.subject import Subject, own_name
from batchplan.configfile import UNKNOWN, ConfigFile, Entry, Format, Severity
from batchplan.sources.trainer_keys import Key

_SWITCHES = {"true": True, "false": False}
_BUILT_ON_ARGUMENTS = ("hf-trainer", "trl", "llamafactory", "ms-swift", "unsloth")
_MOST_CHOICES = 8
"""That are told; there are dozens of optimizers."""
_CHOSEN = (
    *("eval_strategy", "save_strategy", "logging_strategy", "hub_strategy"),
    *("lr_scheduler_type", "optim", "train_sampling_strategy"),
)
"""Keys that ``TrainingArguments`` makes an enumeration of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """What becomes of text where the key is a number or a switch."""

    keeps_text: bool
    """Whether it arrives as text; otherwise the key's type decides."""
    reads_exponents: bool = False
    """Whether ``2e-5`` without a dot is a number already, unlike in YAML 1.1."""
    source: str


_PYTHON = Loader(keeps_text=True, source="Python keyword arguments")
_LOADERS = {
    "hf-trainer": Loader(
        keeps_text=True, source="transformers hf_argparser.py, HfArgumentParser.parse_yaml_file"
    ),
    "llamafactory": Loader(
        keeps_text=True, source="llamafactory hparams/parser.py, HfArgumentParser.parse_dict"
    ),
    "trl": Loader(keeps_text=False, source="trl scripts/utils.py, TrlParser (argparse)"),
    "axolotl": Loader(keeps_text=False, source="axolotl utils/schemas/config.py (pydantic)"),
    "ms-swift": Loader(keeps_text=False, source="swift cli/main.py (argv)"),
    "unsloth": _PYTHON,
    "accelerate": Loader(keeps_text=True, source="accelerate commands/config/config_args.py"),
    "deepspeed": Loader(keeps_text=True, source="deepspeed runtime/config.py"),
    "torchtune": Loader(keeps_text=True, reads_exponents=True, source="omegaconf _utils.py"),
    "litgpt": Loader(keeps_text=False, reads_exponents=True, source="jsonargparse"),
    "lightning": Loader(keeps_text=False, reads_exponents=True, source="jsonargparse"),
    "torchtitan": Loader(keeps_text=False, reads_exponents=True, source="tyro"),
}


def _rate(subject: Subject) -> Iterator[Remark]:
    """``2e-5`` is text to YAML 1.1, which wants a dot, and some trainers hand it on so.

    Source: ``Loader.source`` of each trainer.
    """
    for file, entry, loader in _texts(subject):
        number = _number(entry.value)
        if number is None or not _is_rate(subject, file, entry):
            continue
        yield at(
            file,
            entry.path,
            f"{entry.dotted}: {_written(file, entry)} is text{_to_whom(file, entry)}, and "
            + (
                f"{subject.trainer} hands it on as text."
                if loader.keeps_text
                else f"only {subject.trainer}'s parser makes a number of it."
            ),
            fix=f"Write {number!r}." if "." in repr(number) else f"Write {_dotted(number)}.",
            severity=Severity.ERROR if loader.keeps_text else Severity.NOTE,
            edits=set_to(entry.path, to=number),
        )


def _other(subject: Subject) -> Iterator[Remark]:
    """Text where the key is a number or a switch: ``"8"``, ``"true"``.

    Source: the types of the trainer's key snapshot; ``Loader.source``.
    """
    for file, entry, loader in _texts(subject):
        if _is_rate(subject, file, entry):
            continue
        kinds = _kinds(subject, file, entry)
        value = _meant(str(entry.value), kinds)
        if value is None:
            continue
        yield at(
            file,
            entry.path,
            f"{entry.dotted}: {_written(file, entry)} is text where {' or '.join(sorted(kinds))} "
            "is meant" + (f", and {subject.trainer} hands it on so." if loader.keeps_text else "."),
            fix=f"Write {str(value).lower()}.",
            severity=Severity.ERROR if loader.keeps_text else Severity.NOTE,
            edits=set_to(entry.path, to=value),
        )


def _choice(subject: Subject) -> Iterator[Remark]:
    """A word that is none of those the Trainer knows; ``no`` is a switch to YAML 1.1.

    Source: transformers training_args.py, TrainingArguments.__post_init__ and utils/generic.py,
    ExplicitEnum raise ValueError.
    """
    if not subject.is_on(*_BUILT_ON_ARGUMENTS):
        return
    for file, entry in subject.entries(*_CHOSEN):
        key = _listed(subject, file, entry)
        choices = () if key is None else key.choices
        if not choices or entry.value in (None, UNKNOWN) or entry.value in choices:
            continue
        meant = _nearest(entry.value, choices)
        yield at(
            file,
            entry.path,
            f"{entry.dotted}: {_written(file, entry)} "
            + ("is false in YAML 1.1, and " if entry.value is False else "is ")
            + f"none of its values{_told(choices)}: the Trainer refuses it.",
            fix=f"Write one of them{_alike(entry.value, choices)}."
            if meant is None
            else f'Write "{meant}".',
            edits=() if meant is None else set_to(entry.path, to=meant),
        )


def _told(choices: Sequence[Any]) -> str:
    is_short = len(choices) <= _MOST_CHOICES
    return f" ({', '.join(map(str, choices))})" if is_short else ""


def _alike(value: object, choices: Sequence[Any]) -> str:
    """Return a few choices that look like a word, where not all of them are told."""
    found = difflib.get_close_matches(str(value).lower(), map(str, choices), n=3, cutoff=0.5)
    return f", such as {', '.join(found)}" if found and not _told(choices) else ""


def _nearest(value: object, choices: Sequence[Any]) -> str | None:
    """Return the choice that was probably meant."""
    if value is False:
        return "no" if "no" in choices else None
    found = difflib.get_close_matches(str(value).lower(), map(str, choices), n=1, cutoff=0.8)
    return found[0] if found else None


def _texts(subject: Subject) -> Iterator[tuple[ConfigFile, Entry, Loader]]:
    """Yield every text of a file that its loader does not read as something else."""
    for file in subject.of_role(MAIN, ACCELERATE, DEEPSPEED, SCRIPT):
        role = subject.roles[file.name]
        name = role if role in (ACCELERATE, DEEPSPEED) else subject.trainer
        loader = _PYTHON if role == SCRIPT else _LOADERS[name]
        for entry in file.entries.values():
            if isinstance(entry.value, str) and not (
                loader.reads_exponents and not _is_quoted(file, entry)
            ):
                yield file, entry, loader


def _is_rate(subject: Subject, file: ConfigFile, entry: Entry) -> bool:
    read = subject.reading.of("learning_rate")
    is_read = read is not None and (read.file, read.key) == (file.name, entry.dotted)
    return is_read or own_name(file.format, entry.path) in RATES


def _kinds(subject: Subject, file: ConfigFile, entry: Entry) -> frozenset[str]:
    """Return the types that a key takes; empty where they are not known."""
    key = _listed(subject, file, entry)
    return frozenset() if key is None else key.types


def _listed(subject: Subject, file: ConfigFile, entry: Entry) -> Key | None:
    """Return what is known of a key."""
    table = table_of(subject.trainer, subject.roles[file.name], entry.path)
    if table is None:
        return None
    keys, name = subject.keys_for(table, file)
    inner = ".".join(map(str, entry.path[table.below :]))
    return keys.key(name, inner)


def _meant(text: str, kinds: frozenset[str]) -> bool | int | float | None:
    """Return the value that is meant by text, None where text is right."""
    if not kinds or not kinds <= {"bool", "int", "float"}:
        return None
    if "bool" in kinds and text.lower() in _SWITCHES:
        return _SWITCHES[text.lower()]
    number = _number(text)
    if number is None or kinds == {"bool"}:
        return None
    return int(number) if "int" in kinds and number.is_integer() else number


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


def _dotted(number: float) -> str:
    """Return a number as YAML 1.1 reads one, with a dot.

    >>> _dotted(2e-05)
    '2.0e-05'
    """
    digits, exponent = repr(number).split("e")
    return f"{digits}.0e{exponent}"


def _written(file: ConfigFile, entry: Entry) -> str:
    return file.text[entry.written.start : entry.written.end]


def _to_whom(file: ConfigFile, entry: Entry) -> str:
    """Say who takes for text what looks like a number."""
    return " in YAML 1.1" if file.format is Format.YAML and not _is_quoted(file, entry) else ""


def _is_quoted(file: ConfigFile, entry: Entry) -> bool:
    return _written(file, entry)[:1] in ("'", '"')


RULES = (
    Rule(
        code="string-learning-rate",
        severity=Severity.ERROR,
        title="A learning rate that YAML reads as text",
        source="transformers hf_argparser.py, HfArgumentParser.parse_yaml_file; YAML 1.1",
        look=_rate,
    ),
    Rule(
        code="text-for-a-value",
        severity=Severity.ERROR,
        title="Text where a number or a switch is meant",
        source="the trainer's own loader",
        look=_other,
    ),
    Rule(
        code="value-unknown",
        severity=Severity.ERROR,
        title="A word that is none of the key's values",
        source="transformers training_args.py, TrainingArguments.__post_init__",
        look=_choice,
    ),
)

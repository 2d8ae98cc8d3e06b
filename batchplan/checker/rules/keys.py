"""Keys that the trainer does not know, knows no longer, or is given twice."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from batchplan.checker.beside import names_a_file
from batchplan.checker.launched import (
    READ_FLAGS,
    flags_behind_script,
    overrides,
    own_flags,
    script_of,
)
from batchplan.checker.roles import LAUNCH, MAIN
from batchplan.checker.rule import Remark, Rule, at
from batchplan.checker.strange import COMPONENT, StrangeKey, strange_keys
from batchplan.checker.subject import Subject
from batchplan.configfile import Change, ConfigFile, Edit, Entry, Severity
from batchplan.sources.trainer_keys import Renamed

_SILENT = {
    "axolotl": "pydantic ignores it (axolotl utils/schemas/config.py)",
    "deepspeed": "DeepSpeed reads only what it knows (runtime/config.py)",
}
"""Trainers that ignore unknown keys; the others refuse them."""
_SILENT_BUT_COMPONENTS = {
    "torchtune": "the recipe reads only what it knows (torchtune config/_utils.py)"
}
"""Those that refuse only unknown arguments of what a section builds."""
_SILENT_NESTED = {"accelerate": "accelerate checks the top level only (config_args.py)"}
_SILENT_PARTS = {
    "fsdp_config": "the Trainer reads only what it knows (transformers training_args.py)",
    "quantization_config": "BitsAndBytesConfig drops it (utils/quantization_config.py)",
}
"""Sections and lists in which those that are built on transformers ignore unknown keys."""
_MISSPELT = 0.85
"""Likeness of two words from which one is the other misspelt, and mended: a choice."""
_CONFIG_FLAG = ("flags", "--config")
_MOST_TOLD = 5
"""Flags that are told by name."""
_BECAME_VALUES = ("adafactor", "group_by_length")
"""Switches whose name is a value of the key that says the same now."""


def _unknown(subject: Subject) -> Iterator[Remark]:
    """A key of no release that is supported: refused, or ignored without a word.

    Flags are left out: they may be the launcher's, or the script's own.

    Source: the trainer's key snapshot in profiles/trainers.
    """
    for key in strange_keys(subject):
        if key.renamed is not None or key.is_flag:
            continue
        whose, silent = key.keys.trainer, _why_silent(key)
        nearest = key.keys.nearest(key.name, key.dotted)
        beside = nearest is not None and tuple(nearest.split(".")[:-1]) == key.inner[:-1]
        is_misspelt = nearest is not None and _likeness(key.dotted, nearest) >= _MISSPELT
        is_scripts = nearest is None and _may_be_the_scripts(subject, key)
        outcome = f": {silent}" if silent else ", and refuses the file"
        if is_scripts:
            outcome = (
                ": its parser refuses the file unless the script has a dataclass with that key"
            )
        yield at(
            key.file,
            key.path,
            f"{whose} {key.keys.version} has no key {key.dotted}{outcome}.",
            fix=_meant(key, nearest, beside=beside, is_misspelt=is_misspelt),
            severity=Severity.WARNING if silent or is_scripts else Severity.ERROR,
            edits=_renaming(key, nearest) if nearest and beside and is_misspelt else (),
        )


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _may_be_the_scripts(subject: Subject, key: StrangeKey) -> bool:
    """Whether a script may read the key into a dataclass of its own.

    Source: transformers hf_argparser.py, HfArgumentParser.parse_dict takes several dataclasses.
    """
    is_main = subject.roles[key.file.name] == MAIN
    return subject.is_on("hf-trainer") and is_main and len(key.inner) == 1


def _meant(key: StrangeKey, nearest: str | None, *, beside: bool, is_misspelt: bool) -> str:
    if nearest is None:
        return "Remove it."
    if beside and key.path_of(*nearest.split(".")) in key.file.entries:
        return f"Keep one: {nearest} stands there too."
    return (
        f"Write {nearest}." if is_misspelt else f"Remove it, or write {nearest} if that is meant."
    )


def _why_silent(key: StrangeKey) -> str | None:
    """Return why the trainer ignores a key that it does not know; None where it refuses it."""
    whose = key.keys.trainer
    if whose in _SILENT:
        return _SILENT[whose]
    if whose in _SILENT_BUT_COMPONENTS:
        is_built = (*key.path[:-1], COMPONENT) in key.file.entries
        return None if is_built else _SILENT_BUT_COMPONENTS[whose]
    is_nested = len(key.inner) > 1
    if whose in _SILENT_NESTED:
        return _SILENT_NESTED[whose] if is_nested else None
    return _SILENT_PARTS.get(key.inner[0] if is_nested else key.name)


def _old(subject: Subject) -> Iterator[Remark]:
    """A key that newer releases call otherwise.

    Source: the trainer's key snapshot, with the release that changed it.
    """
    for key, row in _gone(subject):
        if row.to is not None:
            fix, edits = _in_new_words(key, row.to)
            yield at(
                key.file,
                key.path,
                f"{key.dotted} is gone since {row.package} {row.removed_in}, and is {row.to} now "
                f"({row.note}).",
                fix=fix,
                edits=edits,
            )


def _removed(subject: Subject) -> Iterator[Remark]:
    """A key that newer releases have nothing in place of.

    Source: the trainer's key snapshot, with the release that dropped it.
    """
    for key, row in _gone(subject):
        if row.to is None:
            yield at(
                key.file,
                key.path,
                f"{key.dotted} is gone since {row.package} {row.removed_in} ({row.note}).",
                fix="Remove it.",
                edits=(Edit(change=Change.REMOVE, path=key.path),),
            )


def _gone(subject: Subject) -> Iterator[tuple[StrangeKey, Renamed]]:
    """Yield older keys that the release no longer takes, and what became of them."""
    for key in strange_keys(subject):
        row = key.renamed
        if row is not None and row.removed_in is not None:
            since = tuple(int(part) for part in row.removed_in.split(".") if part.isdigit())
            if subject.release(row.package) >= since:
                yield key, row


def _in_new_words(key: StrangeKey, to: str) -> tuple[str, tuple[Edit, ...]]:
    """Return how to say the same under another key, in words and as edits."""
    value = key.file.entries[key.path].value
    if key.path_of(*to.split(".")) in key.file.entries:
        return f"Keep one: {to} stands there too.", ()
    if key.dotted not in _BECAME_VALUES or not isinstance(value, bool):
        return f"Write {to}.", _moving(key, to) if _keeps_its_value(key, to) else ()
    if not value:
        return "Remove it.", (Edit(change=Change.REMOVE, path=key.path),)
    said = Edit(change=Change.SET, path=key.path, value=key.dotted)
    return f"Write {to}: {key.dotted}.", (said, *_renaming(key, to))


def _keeps_its_value(key: StrangeKey, to: str) -> bool:
    """Whether the value of the older key is one of the newer, and means the same.

    Not where several older keys became one, which then says more than each of them did.
    """
    known = key.keys.key(key.name, to)
    if known is None or sum(row.to == to for row in key.keys.renamed.values()) > 1:
        return False
    value = key.file.entries[key.path].value
    fits = "any" in known.types or type(value).__name__ in known.types
    return fits and (not known.choices or value in known.choices)


def _moving(key: StrangeKey, to: str) -> tuple[Edit, ...]:
    """Return the edits that give the value to another key, in another section if need be."""
    inner = tuple(to.split("."))
    if inner[:-1] == key.inner[:-1]:
        return _renaming(key, to)
    path = key.path_of(*inner)
    if path in key.file.entries:
        return ()
    value = key.file.entries[key.path].value
    return (
        Edit(change=Change.SET, path=path, value=value),
        Edit(change=Change.REMOVE, path=key.path),
    )


def _unread(subject: Subject) -> Iterator[Remark]:
    """Flags and overrides of a launch command that nothing here reads.

    Source: ``checker/launched.py`` and the readers of ``batchplan/trainers``.
    """
    for file in subject.of_role(LAUNCH):
        unread = {**_unread_flags(subject, file), **overrides(file)}
        if unread:
            yield _not_counted(file, unread, fix="Set them in the config.")
        shipped = file.entries.get(_CONFIG_FLAG)
        if subject.is_on("torchtune") and shipped and not names_a_file(file, _CONFIG_FLAG, shipped):
            name = f"--config {shipped.value}"
            yield _not_counted(file, {name: shipped}, fix=f"tune cp {shipped.value} FILE, for one.")


def _unread_flags(subject: Subject, file: ConfigFile) -> dict[str, Entry]:
    """Return the flags of a script, or the keys among those of the trainer's own program."""
    if subject.is_on(*READ_FLAGS):
        return {}
    flags = {
        name: flag
        for name, flag in own_flags(file).items()
        if not names_a_file(file, flag.path, flag)
    }
    if script_of(file) is None:
        keys = subject.keys_of(subject.trainer)
        is_ours = {name for name in flags for listed in keys.files if keys.is_known(listed, name)}
    else:
        is_ours = set(flags_behind_script(file))
    return {f"--{name}": flag for name, flag in flags.items() if name in is_ours}


def _not_counted(file: ConfigFile, words: Mapping[str, Entry], *, fix: str) -> Remark:
    name, first = next(iter(words.items()))
    return Remark(
        text=f"Not read from a launch command, and so not counted here: {_listed(list(words))}.",
        fix=fix,
        file=file.name,
        line=(first.key or first.written).line,
        key=name,
    )


def _listed(words: list[str]) -> str:
    more = len(words) - _MOST_TOLD
    return ", ".join(words[:_MOST_TOLD]) + (f" and {more} more" if more > 0 else "")


def _repeated(subject: Subject) -> Iterator[Remark]:
    """A key that stands twice: the last wins without a word.

    Source: PyYAML constructor.py and json decoder.py keep the last.
    """
    for file in subject.files:
        for entry in file.repeated:
            last = file.line(*entry.path)
            line = (entry.key or entry.written).line
            yield Remark(
                text=f"{entry.dotted} is given twice: line {line} is overridden by line {last}.",
                fix="Keep one.",
                file=file.name,
                line=line,
                key=entry.dotted,
            )


def _renaming(key: StrangeKey, to: str) -> tuple[Edit, ...]:
    """Return the edit, or none where the other name stands there too."""
    path = key.path_of(*key.inner[:-1], to.split(".")[-1])
    if path in key.file.entries:
        return ()
    return (Edit(change=Change.RENAME, path=key.path, value=path[-1]),)


RULES = (
    Rule(
        code="unknown-key",
        severity=Severity.ERROR,
        title="A key that the trainer does not know",
        source="profiles/trainers: the keys of the release, from its own classes",
        look=_unknown,
    ),
    Rule(
        code="renamed-key",
        severity=Severity.ERROR,
        title="A key that has another name now",
        source="profiles/trainers: the renames of the release",
        look=_old,
    ),
    Rule(
        code="removed-key",
        severity=Severity.ERROR,
        title="A key that is no more",
        source="profiles/trainers: the renames of the release",
        look=_removed,
    ),
    Rule(
        code="unread-flags",
        severity=Severity.WARNING,
        title="Flags of a launch command that are not read",
        source="batchplan/checker/launched.py: whose flags are keys",
        look=_unread,
    ),
    Rule(
        code="repeated-key",
        severity=Severity.WARNING,
        title="A key that is given twice",
        source="PyYAML constructor.py; json decoder.py",
        look=_repeated,
    ),
)

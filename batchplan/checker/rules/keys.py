"""Keys that the trainer does not know, knows no longer, or is given twice."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.checker.rule import Remark, Rule, at
from batchplan.checker.strange import COMPONENT, StrangeKey, strange_keys
from batchplan.checker.subject import Subject
from batchplan.configfile import Change, Edit, Severity
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
_BECAME_VALUES = ("adafactor", "group_by_length")
"""Switches whose name is a value of the key that says the same now."""


def _unknown(subject: Subject) -> Iterator[Remark]:
    """A key of no release that is supported: refused, or ignored without a word.

    Source: the trainer's key snapshot in profiles/trainers.
    """
    for key in strange_keys(subject):
        if key.renamed is not None:
            continue
        whose, silent = key.keys.trainer, _why_silent(key)
        nearest = key.keys.nearest(key.name, key.dotted)
        beside = nearest is not None and tuple(nearest.split(".")[:-1]) == key.inner[:-1]
        yield at(
            key.file,
            key.path,
            f"{whose} {key.keys.version} has no key {key.dotted}"
            + (f": {silent}." if silent else ", and refuses the file."),
            fix=_meant(key, nearest, beside=beside),
            severity=Severity.WARNING if silent else Severity.ERROR,
            edits=_renaming(key, nearest) if nearest and beside else (),
        )


def _meant(key: StrangeKey, nearest: str | None, *, beside: bool) -> str:
    if nearest is None:
        return "Remove it."
    stands = beside and (*key.path[:-1], nearest.split(".")[-1]) in key.file.entries
    return f"Keep one: {nearest} stands there too." if stands else f"Write {nearest}."


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
    if (*key.path[: key.below], *to.split(".")) in key.file.entries:
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
    path = (*key.path[: key.below], *inner)
    if path in key.file.entries:
        return ()
    value = key.file.entries[key.path].value
    return (
        Edit(change=Change.SET, path=path, value=value),
        Edit(change=Change.REMOVE, path=key.path),
    )


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
    name = to.split(".")[-1]
    if (*key.path[:-1], name) in key.file.entries:
        return ()
    return (Edit(change=Change.RENAME, path=key.path, value=name),)


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
        code="repeated-key",
        severity=Severity.WARNING,
        title="A key that is given twice",
        source="PyYAML constructor.py; json decoder.py",
        look=_repeated,
    ),
)

"""A rule: what it looks for, how bad that is, and the library that makes it so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from batchplan.checker.subject import Subject
from batchplan.configfile import Change, ConfigFile, Edit, Finding, Format, Path, Severity

MOST = 50
"""Findings of one rule that are told."""
_AND_MORE = f"More than {MOST} places; the others are not told."


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What a rule has to say, before it is given the rule's name."""

    text: str
    fix: str = ""
    file: str = ""
    line: int | None = None
    key: str = ""
    edits: tuple[Edit, ...] = ()
    severity: Severity | None = None
    """Where it is not the rule's usual one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of mistake."""

    code: str
    """Short and stable; scripts and SARIF know the rule by it."""
    severity: Severity
    """The usual one; a remark may say otherwise."""
    title: str
    """What is wrong, in a few words, for a list of rules."""
    source: str
    """File, and function or class in it, of the library that makes it a mistake."""
    look: Callable[[Subject], Iterator[Remark]]

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """Yield what the rule finds, up to ``MOST`` places: a file with more is another file."""
        for place, remark in enumerate(self.look(subject)):
            if place == MOST:
                yield Finding(code=self.code, severity=self.severity, text=_AND_MORE)
                return
            yield Finding(
                code=self.code,
                severity=remark.severity or self.severity,
                text=remark.text,
                fix=remark.fix,
                file=remark.file,
                line=remark.line,
                key=remark.key,
                edits=remark.edits,
            )


def at(
    file: ConfigFile,
    path: Path,
    text: str,
    *,
    fix: str = "",
    edits: tuple[Edit, ...] = (),
    severity: Severity | None = None,
) -> Remark:
    """Return a remark on one key of a file, which need not be there yet."""
    entry = file.entries.get(path)
    return Remark(
        text=text,
        fix=fix,
        file=file.name,
        line=file.line(*path),
        key=".".join(map(str, path)) if entry is None else entry.dotted,
        edits=edits if all(_can(file, edit) for edit in edits) else (),
        severity=severity,
    )


def about(subject: Subject, option: str, text: str, **more: Any) -> Remark:
    """Return a remark on the key that says an option, or on the run where no key says it."""
    read = subject.reading.of(option)
    if read is None:
        return Remark(text=text, **more)
    return Remark(text=text, file=read.file, line=read.line, key=read.key, **more)


def set_to(path: Path, *, to: Any) -> tuple[Edit, ...]:
    """Return the edit that gives a key a value."""
    return (Edit(change=Change.SET, path=path, value=to),)


def _can(file: ConfigFile, edit: Edit) -> bool:
    """Whether an edit can be made: in a script, only what is there can be changed."""
    return file.format in (Format.YAML, Format.JSON) or edit.path in file.entries

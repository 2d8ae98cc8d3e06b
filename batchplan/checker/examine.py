"""All that is wrong with one run, the worst first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from batchplan.checker.rules import RULES
from batchplan.checker.subject import Subject
from batchplan.configfile import ConfigFile, Finding, Format, Severity

_ORDER = tuple(Severity)


def examine(subject: Subject) -> tuple[Finding, ...]:
    """Return what the rules, the trainer's reader and the reading of its loops find."""
    found: list[Finding] = [*subject.reading.problems]
    for rule in RULES:
        found += rule.findings(subject)
    for file in subject.files:
        found += _in_loops(file)
    return in_order(found, subject.files)


def in_order(findings: Iterable[Finding], files: tuple[ConfigFile, ...]) -> tuple[Finding, ...]:
    """Return findings by severity, file and line, each once."""
    places = {file.name: place for place, file in enumerate(files)}
    return tuple(
        sorted(
            _unlike(findings),
            key=lambda one: (
                _ORDER.index(one.severity),
                places.get(one.file, len(places)),
                one.line or 0,
            ),
        )
    )


def _unlike(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings, of two with the same code at the same key the first."""
    seen = set()
    for one in findings:
        place = (one.code, one.file, one.line, one.key)
        if place not in seen:
            seen.add(place)
            yield one


def _in_loops(file: ConfigFile) -> Iterable[Finding]:
    if file.format is not Format.PYTHON:
        return ()
    from batchplan.checker.loop import find_loop_mistakes

    return find_loop_mistakes(file)

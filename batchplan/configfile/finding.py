"""What a check has to say about one place of a config file, and the change that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchplan.configfile.located import Path


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The run fails, or trains something else than the file says."""
    WARNING = "warning"
    """It costs memory, speed or quality, or surely is not what was meant."""
    NOTE = "note"
    """Worth knowing."""


class Change(StrEnum):
    """What an edit does to a key."""

    SET = "set"
    """Give it another value; where it is absent, add it."""
    RENAME = "rename"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One change to one key of a file."""

    change: Change
    path: Path
    value: Any = None
    """The new value, or the new name of the last key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong, or worth knowing, at one place of a config file."""

    code: str
    """Short and stable, such as ``string-learning-rate``; scripts and SARIF know it by this."""
    severity: Severity
    text: str
    """One sentence, with the numbers."""
    fix: str = ""
    """What to write instead, in words; empty where there is nothing to do."""
    file: str = ""
    line: int | None = None
    key: str = ""
    """Dotted, as written."""
    edits: tuple[Edit, ...] = ()
    """What ``--fix`` does; empty where only a person can decide."""

"""The error tree; each branch has one exit code.

    BatchplanError            1   a bug: please report
    ├── SpecError             2   bad input
    │   └── UnknownNameError  2   no such GPU, model or trainer; carries the nearest names
    ├── NoPlanError           3   nothing fits
    ├── ProbeError            4   no device, driver, or the child died
    ├── SourceError           5   the model config cannot be had (offline, gated, not found)
    ├── TraceError            5   the model's code cannot be traced
    └── CheckError            6   check or verify found a mistake

``batchplan.cli.main`` alone turns an error into one line on stderr and its exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BatchplanError(Exception):
    """Base of every error we raise on purpose."""

    exit_code = 1


class SpecError(BatchplanError):
    """The input is wrong; the message says what, with the numbers, and what to try."""

    exit_code = 2


class UnknownNameError(SpecError):
    """A name that no table holds, with the nearest names that one does."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.nearest = difflib.get_close_matches(name.lower(), list(known), n=4, cutoff=0.4)
        nearest = f" Nearest: {', '.join(self.nearest)}." if self.nearest else ""
        super().__init__(f"Unknown {kind} {name!r}.{nearest}{' ' + hint if hint else ''}")


class NoPlanError(BatchplanError):
    """Nothing fits; the message names the closest miss and its excess."""

    exit_code = 3


class ProbeError(BatchplanError):
    """The device or the child process failed."""

    exit_code = 4


class SourceError(BatchplanError):
    """The model config cannot be had: offline, gated or not found."""

    exit_code = 5


class TraceError(BatchplanError):
    """The model's own code could not be run on fake tensors."""

    exit_code = 5


class CheckError(BatchplanError):
    """A check found a mistake."""

    exit_code = 6

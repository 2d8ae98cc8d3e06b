"""Config files as text: read with line numbers, within limits, and changed in place."""

from batchplan.configfile.edits import apply
from batchplan.configfile.finding import Change, Edit, Finding, Severity
from batchplan.configfile.located import UNKNOWN, ConfigFile, Entry, Format, Path, Span
from batchplan.configfile.reading import parse, read

__all__ = [
    "UNKNOWN",
    "Change",
    "ConfigFile",
    "Edit",
    "Entry",
    "Finding",
    "Format",
    "Path",
    "Severity",
    "Span",
    "apply",
    "parse",
    "read",
]

"""Changes in the words of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote

SWITCHES = frozenset({"expandable-segments", "sync-each-batch"})
"""Options that are on or off; in a change they have ``yes`` or ``no``."""


def flags(change: Mapping[str, str]) -> str:
    """Return the command line's options for a change.

    >>> flags({"sharding": "zero3", "sync-each-batch": "no"})
    '--sharding zero3 --no-sync-each-batch'
    >>> flags({"gpu": "A100 SXM 80GB"})
    "--gpu 'A100 SXM 80GB'"
    """
    return " ".join(_flag(name, value) for name, value in change.items())


def _flag(name: str, value: str) -> str:
    if name in SWITCHES:
        return f"--{name}" if value == "yes" else f"--no-{name}"
    return f"--{name} {quote(value)}"

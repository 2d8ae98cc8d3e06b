"""Written values against the types and choices that a release's key snapshot names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

SNAPSHOTS = Path(__file__).parent.parent / "profiles" / "trainers"


@cache
def snapshot(trainer: str, role: str = "config") -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return keys by dotted name, and the sections that take any key."""
    file = json.loads((SNAPSHOTS / f"{trainer}.json").read_text(encoding="utf-8"))["files"][role]
    return file["keys"], tuple(file["open"])


def violations(trainer: str, settings: Mapping[str, Any], role: str = "config") -> list[str]:
    """Return the keys that the release has not, or has for another type or other words."""
    keys, opened = snapshot(trainer, role)
    found = []
    for name, value in _flat(settings, opened):
        row = keys.get(name)
        if row is None:
            found.append(f"{name}: unknown")
        elif not _is_of(value, row):
            found.append(f"{name}: {value!r} is no {row['type']} {row.get('choices', '')}")
    return found


def _flat(settings: Mapping[str, Any], opened: tuple[str, ...], prefix: str = "") -> Iterator:
    for name, value in settings.items():
        full = f"{prefix}{name}"
        yield full, value
        if isinstance(value, dict) and full not in opened:
            yield from _flat(value, opened, f"{full}.")


def _is_of(value: object, row: Mapping[str, Any]) -> bool:
    kinds = row["type"].split("|")
    if "any" in kinds:
        return True
    if "choices" in row and not isinstance(value, bool):
        return value in row["choices"]
    own = type(value).__name__
    return own in kinds or (own == "int" and "float" in kinds)

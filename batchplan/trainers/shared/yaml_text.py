"""YAML with a comment beside each key; values are written by pyyaml, never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from textwrap import indent
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a config file, its value, and why it has it."""

    key: str
    """Dotted where it is nested: ``train.micro_batch_size``."""
    value: Any
    why: str = ""


def to_yaml(header: Iterable[str], settings: Iterable[Setting]) -> str:
    """Return a YAML mapping under a comment header; keys of one block must follow each other.

    pyyaml writes floats so that YAML 1.1 reads them back as floats (``2.0e-05``; a bare ``2e-5``
    would be a string).

    >>> print(to_yaml(["A plan."], [Setting("learning_rate", 2e-5, "linear rule")]), end="")
    # A plan.
    learning_rate: 2.0e-05  # linear rule
    >>> print(to_yaml([], [Setting("train.lr", 1.0), Setting("train.k", 2, "passes")]), end="")
    train:
      lr: 1.0
      k: 2  # passes
    """
    lines = [f"# {line}".rstrip() for line in header]
    return "\n".join([*lines, *_block(list(settings))]) + "\n"


def nested(settings: Iterable[Setting]) -> dict[str, Any]:
    """Return settings as the mapping that their dotted keys stand for.

    >>> nested([Setting("train.lr", 1.0), Setting("train.k", 2)])
    {'train': {'lr': 1.0, 'k': 2}}
    """
    found: dict[str, Any] = {}
    for setting in settings:
        *outer, last = setting.key.split(".")
        holder = found
        for name in outer:
            holder = holder.setdefault(name, {})
        holder[last] = setting.value
    return found


def _block(settings: list[Setting]) -> Iterator[str]:
    for name, group in groupby(settings, key=lambda setting: setting.key.partition(".")[0]):
        inner = list(group)
        if inner[0].key == name:
            yield from _entry(inner[0])
            continue
        yield f"{name}:"
        shorter = [replace(setting, key=setting.key.partition(".")[2]) for setting in inner]
        yield from (indent(line, "  ") for line in _block(shorter))


def _entry(setting: Setting) -> Iterator[str]:
    text = yaml.safe_dump(
        {setting.key: setting.value}, sort_keys=False, default_flow_style=False, width=1000
    )
    first, *rest = text.rstrip("\n").split("\n")
    yield f"{first}  # {setting.why}" if setting.why else first
    yield from rest

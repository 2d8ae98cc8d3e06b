"""YAML with a comment beside each key; values are written by pyyaml, never by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Setting:
    """One top-level key of a config file, its value, and why it has it."""

    key: str
    value: Any
    why: str = ""


def to_yaml(header: Iterable[str], settings: Iterable[Setting]) -> str:
    """Return a YAML mapping under a comment header.

    pyyaml writes floats so that YAML 1.1 reads them back as floats (``2.0e-05``; a bare ``2e-5``
    would be a string).

    >>> print(to_yaml(["A plan."], [Setting("learning_rate", 2e-5, "linear rule")]), end="")
    # A plan.
    learning_rate: 2.0e-05  # linear rule
    """
    lines = [f"# {line}".rstrip() for line in header]
    for setting in settings:
        text = yaml.safe_dump(
            {setting.key: setting.value}, sort_keys=False, default_flow_style=False, width=1000
        )
        first, *rest = text.rstrip("\n").split("\n")
        lines += [f"{first}  # {setting.why}" if setting.why else first, *rest]
    return "\n".join(lines) + "\n"

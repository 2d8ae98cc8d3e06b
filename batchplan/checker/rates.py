"""Learning rates that are written as text: ``2e-5`` is none to YAML 1.1, which wants a dot."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from batchplan.checker.subject import own_name
from batchplan.configfile import ConfigFile, Format
from batchplan.trainers.reading import Read, Reading

RATES = frozenset(
    {
        "learning_rate",
        "lr",
        "optimizer.lr",
        "optimizer.init_args.lr",
        "optim.lr",
        "optimizer.params.lr",
    }
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def with_text_rate(reading: Reading, files: Iterable[ConfigFile]) -> Reading:
    """Return a reading with the rate that text means: most loaders make a number of it.

    Where a loader does not, that is an error of its own, and this is what was meant.
    """
    if reading.of("learning_rate") is not None:
        return reading
    found = [
        Read(
            option="learning_rate",
            value=float(entry.value),
            key=entry.dotted,
            file=file.name,
            line=file.line(*path),
        )
        for file in files
        if file.format in (Format.YAML, Format.JSON)
        for path, entry in file.entries.items()
        if own_name(file.format, path) in RATES
        and isinstance(entry.value, str)
        and _NUMBER.fullmatch(entry.value)
    ]
    return replace(reading, reads=(*found[:1], *reading.reads))

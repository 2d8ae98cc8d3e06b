"""What a training script says by itself, where no config does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchplan.checker.loop import values_in_loop
from batchplan.configfile import ConfigFile, Format
from batchplan.trainers.reading import Read, Reading

_OPTIONS = ("accum_steps", "micro_batch", "learning_rate")


def with_loops(reading: Reading, files: Iterable[ConfigFile]) -> Reading:
    """Return a reading with the batch and rate that scripts state, for what no config says."""
    found = [
        Read(option=name, value=values[name][0], key=name, file=file.name, line=values[name][1])
        for file in files
        if file.format is Format.PYTHON
        for values in [values_in_loop(file)]
        for name in _OPTIONS
        if name in values and reading.of(name) is None
    ]
    return replace(reading, reads=(*found, *reading.reads))

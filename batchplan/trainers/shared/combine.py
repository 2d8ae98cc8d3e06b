"""From what keys say one by one to a reading: what only several of them together decide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchplan.configfile import Finding
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.shared.model_kwargs import LOAD_DTYPE
from batchplan.trainers.shared.precision import numerics_of

CAST = "cast"
"""Read, but no option of ours: ``bf16`` or ``fp16`` where mixed precision is on."""
_RAW = (LOAD_DTYPE, CAST)


def reading(trainer: str, reads: Iterable[Read], problems: Iterable[Finding]) -> Reading:
    """Return the reading of a trainer that loads with transformers; the last of two reads wins.

    Numerics that a reader knows by itself stay as they are.
    """
    last = {read.option: read for read in reads}
    found = {name: read for name, read in last.items() if name not in _RAW}
    says = [last[name] for name in (CAST, LOAD_DTYPE) if name in last]
    if says and "numerics" not in found:
        values = {name: read.value for name, read in last.items()}
        load, cast = values.get(LOAD_DTYPE), values.get(CAST)
        decided = numerics_of(
            None if load is None else str(load),
            None if cast is None else str(cast),
            method=values.get("method"),
            sharding=values.get("sharding"),
        )
        for option, value in decided.items():
            found[option] = replace(says[0], option=option, value=value)
    return Reading(trainer=trainer, reads=tuple(found.values()), problems=tuple(problems))

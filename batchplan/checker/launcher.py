"""What accelerate's launch config decides for a trainer that reads none of it by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from batchplan.checker.roles import ACCELERATE, DEEPSPEED
from batchplan.configfile import ConfigFile
from batchplan.trainers.format import format_of
from batchplan.trainers.policies.rows import AUTOCAST
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.shared.precision import DTYPES, numerics_of

_TAKEN = ("sharding", "fsdp_version", "offload", "zero_buckets", "num_ranks", "num_nodes")
"""Where the trainer's own files say nothing; its precision is the trainer's own."""
_SWITCHES = ("--use_fsdp", "--use_deepspeed", "--use-fsdp", "--use-deepspeed")
"""Flags of ``accelerate launch`` in place of its config."""
_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}
_DTYPES = ("weight_dtype", "grad_dtype", "optimizer_dtype")


def with_launcher(
    reading: Reading, files: Sequence[ConfigFile], roles: Mapping[str, str]
) -> Reading:
    """Return a reading with what accelerate's config says of devices and of sharding.

    Source: accelerate ``commands/launch.py`` hands it on as environment, which the plugins of
    ``Accelerator`` read; transformers ``trainer.py`` makes an ``Accelerator`` of its own.
    """
    beside = [file for file in files if roles[file.name] in (ACCELERATE, DEEPSPEED)]
    switched = [file for file in files if any(("flags", flag) in file for flag in _SWITCHES)]
    has_config = any(roles[file.name] == ACCELERATE for file in beside)
    if not (has_config or switched) or reading.trainer == ACCELERATE:
        return reading
    launched = format_of(ACCELERATE).read([*beside, *switched])
    found = {
        name: read
        for name in _TAKEN
        if reading.of(name) is None and (read := launched.of(name)) is not None
    }
    # FSDP's own checkpointing adds to the trainer's, whatever that says.
    checkpointing = launched.of("checkpointing")
    if checkpointing is not None:
        found["checkpointing"] = checkpointing
    reads = {**{read.option: read for read in reading.reads}, **found}
    return replace(reading, reads=tuple((reads | _numerics(reads, found)).values()))


def _numerics(reads: Mapping[str, Read], found: Mapping[str, Read]) -> dict[str, Read]:
    """Return the numerics that a sharding makes of the trainer's, where accelerate shards."""
    said = reads.get("numerics")
    if said is None or "sharding" not in found:
        return {}
    cast, weights = None, reads.get("weight_dtype")
    if said.value in AUTOCAST:
        cast = str(said.value).partition("-")[0]
    load = _NAMES.get(str(weights.value)) if weights is not None else None
    decided = numerics_of(
        load or (None if cast else _NAMES.get(str(said.value))),
        cast,
        method=None if "method" not in reads else reads["method"].value,
        sharding=found["sharding"].value,
    )
    changed = {
        name: replace(said, option=name, value=decided.get(name))
        for name in _DTYPES
        if name in reads or name in decided
    }
    return changed | {"numerics": replace(said, value=decided.get("numerics", said.value))}

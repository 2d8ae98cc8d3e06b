"""A finished probe as one file: what ran, what it took, and what the estimate had said.

It teaches later estimates one thing: what the environment takes on this device beside the
allocator's segments (context, loaded kernels). Activations and slopes are never scaled by it: they
follow from the model's code, and a factor fitted to one model is wrong for the next.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from batchplan.prober.comparison import Compared
from batchplan.prober.places import contributed_dir, data_dir, measurement_files
from batchplan.prober.saving import public_name, write_new
from batchplan.prober.search import INCONCLUSIVE, Found
from batchplan.prober.trial import Device, Job, Trial
from batchplan.spec import Batch, Caveat, Recipe

SCHEMA_VERSION: Final = 1
MOST_BYTES = 4 * 2**20
"""A larger file is none of ours."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasuredDevice(_Part):
    """Where it ran."""

    name: str
    """As the driver (on a CPU the system) calls it."""
    kind: Device
    total_bytes: PositiveInt | None = None
    """What it has, or the limit."""
    memory_limit_bytes: PositiveInt | None = None
    """Where it stood for a smaller one."""
    driver: str = ""


class Measurement(_Part):
    """One probe, complete enough to be read without the machine it ran on."""

    schema_version: Literal[1] = SCHEMA_VERSION
    created: datetime
    batchplan: str
    """Our version, whose estimate it was."""
    device: MeasuredDevice
    versions: dict[str, str]
    """Packages in the environment that trained."""
    model_id: str
    config_sha256: str
    """Of the model's ``config.json``, keys sorted."""
    recipe: Recipe
    batch: Batch
    """With the largest micro-batch that fits."""
    as_rank_of: PositiveInt | None = None
    weights: bool = False
    """Whether the published weights were loaded."""
    max_micro_batch: NonNegativeInt
    proof: str
    trials: tuple[Trial, ...]
    comparison: tuple[Compared, ...]
    """Estimate and measurement of ``max_micro_batch``."""

    @property
    def best(self) -> Trial | None:
        """The run that ``comparison`` is about."""
        return Found(
            max_micro_batch=self.max_micro_batch, trials=self.trials, proof=self.proof
        ).best

    def compared(self, name: str) -> Compared | None:
        """Return one line of the comparison; None where it was not measured."""
        return next((each for each in self.comparison if each.name == name), None)


def measurement(
    *,
    job: Job,
    model_id: str,
    found: Found,
    comparison: tuple[Compared, ...],
    version: str = "",
    driver: str = "",
    created: datetime | None = None,
) -> Measurement:
    """Return the record of a probe.

    What a child said stays out of it, and a model's path: they may name folders and users.

    Args:
        job: what every trial ran.
        model_id: Hub id; of a local folder the last part is kept.
        found: the search's answer.
        comparison: estimate and measurement of the largest that fits.
        version: our own.
        driver: its version, where there is one.
        created: when; None is now.
    """
    trials = tuple(replace(trial, text="") for trial in found.trials)
    last = trials[-1]
    text = json.dumps(job.config, sort_keys=True, default=str)
    return Measurement(
        created=created or datetime.now(UTC).replace(microsecond=0),
        batchplan=version,
        device=MeasuredDevice(
            name=last.device_name or job.device.value,
            kind=job.device,
            total_bytes=last.total_bytes,
            memory_limit_bytes=job.memory_limit_bytes,
            driver=driver,
        ),
        versions=dict((found.best or last).versions),
        model_id=public_name(model_id),
        config_sha256=hashlib.sha256(text.encode()).hexdigest(),
        recipe=job.recipe,
        batch=Batch(
            micro_batch=max(found.max_micro_batch, 1),
            accum_steps=job.accum_steps,
            num_ranks=job.num_ranks,
            seq_len=job.seq_len,
        ),
        as_rank_of=job.as_rank_of,
        weights=job.weights,
        max_micro_batch=found.max_micro_batch,
        proof=found.proof if found.is_proven else INCONCLUSIVE.rstrip(": "),
        trials=trials,
        comparison=comparison,
    )


def save(measured: Measurement, folder: Path | None = None) -> Path:
    """Write one new file and return its path; what is there is never replaced.

    Raises:
        ProbeError: when it cannot be written.
    """
    names = (measured.device.name, measured.model_id)
    text = measured.model_dump_json(indent=2) + "\n"
    return write_new(folder or data_dir(), names, text, created=measured.created)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What could be read, and what not."""

    measurements: tuple[Measurement, ...] = ()
    caveats: tuple[Caveat, ...] = ()


def load_all(folder: Path | None = None) -> Loaded:
    """Return every measurement of a folder, by file name; a broken file costs a caveat.

    Args:
        folder: None is the user's own.
    """
    found: list[Measurement] = []
    caveats: list[Caveat] = []
    for path in measurement_files(folder or data_dir()):
        try:
            text = _text(path)
            if text:  # An empty one is being written.
                found.append(Measurement.model_validate_json(text))
        except (OSError, ValueError) as error:
            reason = _reason(error)
            caveats.append(
                Caveat(
                    code="measurement-skipped",
                    text=f"The measurement {path} cannot be used: {reason}. Probe again with "
                    "--save, and delete it.",
                )
            )
    return Loaded(measurements=tuple(found), caveats=tuple(caveats))


def contributed() -> Loaded:
    """Return the measurements that users gave to the catalog."""
    return load_all(contributed_dir())


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes are too many")
    return path.read_text(encoding="utf-8")


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first: Any = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
